//! The programs in the real kernel, on packets in memory (`BPF_PROG_TEST_RUN`). Needs root.

use proxy::dataplane::ebpf::{EbpfDataplane, Options, Sizes};

fn open() -> EbpfDataplane {
    let sizes = Sizes {
        frontends: 1024,
        backends: 1024,
        slots: 4096,
        flows: 4096,
        affinities: 1024,
        source_ranges: 1024,
        sockets: 1024,
        fragments: 1024,
    };
    EbpfDataplane::open(&Options {
        sizes,
        bpffs: None,
        cgroup: Some("/sys/fs/cgroup/unified".into()),
        node: Default::default(),
        log_level: 0,
    })
    .unwrap_or_else(|error| panic!("{error}\n{:?}", std::error::Error::source(&error)))
}

#[test]
fn every_program_passes_the_verifier() {
    open();
}
