//! Images without a registry and without docker: OCI archives made of files, and the pause image.
//!
//! ```
//! use fairlead_images::{Image, Layer};
//! let mut layer = Layer::default();
//! layer.file("bin/hello", 0o755, b"...").unwrap();
//! let image = Image::new("example.test/hello:1", vec![layer]).entrypoint(["/bin/hello"]);
//! let mut archive = Vec::new();
//! image.write(&mut archive).unwrap();
//! ```

mod archive;
mod layer;

pub use archive::Image;
pub use layer::Layer;

/// The static program that holds a pod's namespaces.
pub const PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Name under which the pause image is imported, and which the container runtime is told.
pub const PAUSE_IMAGE: &str = concat!("fairlead.dev/pause:", env!("CARGO_PKG_VERSION"));

/// The pause image: one file.
///
/// # Errors
/// Never in practice: writing goes to memory.
pub fn pause() -> std::io::Result<Image> {
    let mut layer = Layer::default();
    layer.file("pause", 0o755, PAUSE)?;
    Ok(Image::new(PAUSE_IMAGE, vec![layer])
        .entrypoint(["/pause"])
        .user("65535:65535"))
}
