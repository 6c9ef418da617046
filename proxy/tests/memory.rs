//! The agent's memory per service: model and plan of 10 000 services with 10 endpoints each.

use proxy::{
    model::{Change, Event, Protocol, ServiceMap},
    plan::compile::{Changed, Planner},
    testing::{self, Ep},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Counts what is allocated and not yet freed, as malloc would round it.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// Of glibc's malloc: 8 bytes of header, multiples of 16, at least 32.
fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to `System` as it came; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(rounded(layout.size()), Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(rounded(layout.size()), Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn ten_thousand_services_fit_in_30_mb() {
    let before = HELD.load(Relaxed);
    let mut map = ServiceMap::default();
    for at in 0..10_000u32 {
        let name = format!("service-{at}");
        let [.., high, low] = at.to_be_bytes();
        let web = testing::service(&name).cluster_ip(&format!("10.96.{high}.{low}")).port(
            "http",
            80,
            Protocol::Tcp,
            (at % 10 == 0).then_some(30_000 + (at / 10) as u16),
        );
        let endpoints: Vec<_> = (0..10u32)
            .map(|e| Ep {
                zones: &["zone-1"],
                node: Some(format!("node-{}", (at + e) % 500).into()),
                ..Ep::there(&format!("10.{}.{high}.{low}", e + 1))
            })
            .collect();
        let ports = [("http", 8080, Protocol::Tcp)];
        let slice = testing::slice_with(&format!("{name}-x7k2p"), &name, &ports, &endpoints);
        map.apply(Event::Service(Change::Apply(web.build())));
        map.apply(Event::Slice(Change::Apply(slice)));
    }
    let model = HELD.load(Relaxed) - before;
    let mut planner = Planner::default();
    planner.update(&map, &testing::node(), Changed::All);
    planner.update(&map, &testing::node(), Changed::Services(&BTreeSet::new()));
    let all = HELD.load(Relaxed) - before;
    assert_eq!(planner.plan().services.len(), 10_000);
    println!("model {} kB, plan {} kB", model / 1_000, (all - model) / 1_000);
    assert!(all < 30_000_000, "{all} bytes, of them {model} in the model");
}
