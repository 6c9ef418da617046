//! The BPF object that the agent carries, built by `build.rs`.

use crate::error::ApplyError;

/// An ELF object for `bpfel-unknown-none`, aligned for the loader. Empty when built with `FAIRLEAD_SKIP_BPF=1`: load
/// what [`object`] returns.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead-bpf"));

/// The object to load.
///
/// # Errors
/// [`ApplyError::Unsupported`] in a build that left the programs out.
pub fn object() -> Result<&'static [u8], ApplyError> {
    if OBJECT.is_empty() {
        return Err(ApplyError::Unsupported {
            dataplane: "ebpf",
            feature:
                "its BPF programs, and this build left them out (FAIRLEAD_SKIP_BPF=1); build with `cargo xtask build`"
                    .to_owned(),
        });
    }
    Ok(OBJECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_little_endian_bpf_or_refused() {
        match object() {
            // ELFCLASS64, ELFDATA2LSB, EV_CURRENT; e_machine at offset 18 is EM_BPF.
            Ok(elf) => {
                assert_eq!(&elf[..7], b"\x7fELF\x02\x01\x01");
                assert_eq!(u16::from_le_bytes([elf[18], elf[19]]), 247);
                assert_eq!(elf.as_ptr() as usize % 8, 0, "the loader reads headers in place");
            }
            Err(refusal) => assert!(refusal.to_string().contains("cargo xtask build")),
        }
    }
}
