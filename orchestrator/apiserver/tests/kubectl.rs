//! The distribution's kubectl, unmodified, in two versions, against a server of its own for each transcript.
//!
//! A transcript (`kubectl/golden/NAME.txt`) is both the script and what it must print. `UPDATE_GOLDEN=1` writes what was
//! printed. Where the older kubectl prints something else, `NAME.VERSION.txt` holds it.

#[path = "kubectl/kubelet.rs"]
mod kubelet;
#[path = "kubectl/normal.rs"]
mod normal;
#[path = "kubectl/programs.rs"]
mod programs;
#[path = "support/mod.rs"]
mod support;
#[path = "kubectl/transcript.rs"]
mod transcript;

/// One test per transcript.
macro_rules! transcripts {
    ($($name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            transcript::check(stringify!($name)).await;
        }
    )* };
}

transcripts! {
    version discovery explain create apply change workloads get describe delete access nodes refused streams crd
}
