//! The programs in the real kernel, on packets in memory (`BPF_PROG_TEST_RUN`). Needs root.

mod affinity;
mod answer;
mod errors;
mod flows;
mod large;
mod memory;
mod odd;
mod packet;
mod pieces;
mod rig;
mod state;
mod table;
mod trip;
mod world;

use proxy::dataplane::ebpf::{EbpfDataplane, Options};
use proxy_common::abi::Node;

/// Those of sockets too, which no other test here loads.
#[test]
fn every_program_passes_the_verifier() {
    rig::in_namespace("every_program_passes_the_verifier", || {
        EbpfDataplane::open(&Options {
            sizes: rig::sizes(),
            bpffs: None,
            cgroup: Some("/sys/fs/cgroup".into()),
            node: Node::default(),
            tcx: None,
            masquerade_all: false,
            log_level: 0,
        })
        .unwrap_or_else(|error| panic!("{error}\n{:?}", std::error::Error::source(&error)));
    });
}
