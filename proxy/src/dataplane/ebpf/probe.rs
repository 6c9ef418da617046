//! What this kernel can do: tried, never guessed from a version.

use crate::status::Probe;
use std::{io, path::Path};

/// Kernel features that decide how the programs are loaded and attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `bpf_ktime_get_coarse_ns` (5.11).
    pub coarse_clock: bool,
    /// Links on tcx (6.6); else clsact filters.
    pub tcx: bool,
}

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

const PROG_LOAD: libc::c_long = 5;
const SCHED_CLS: u32 = 3;
const KTIME_GET_COARSE_NS: i32 = 160;

/// Loads a TC program that calls one helper without arguments.
fn helper_loads(helper: i32) -> io::Result<()> {
    let instructions = [
        Instruction {
            code: 0x85,
            registers: 0,
            offset: 0,
            immediate: helper,
        },
        Instruction {
            code: 0xb7,
            registers: 0,
            offset: 0,
            immediate: 0,
        },
        Instruction {
            code: 0x95,
            registers: 0,
            offset: 0,
            immediate: 0,
        },
    ];
    let attr = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: `attr` is the kernel's layout for this command and points to memory that lives until it returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attr, size_of::<ProgLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that we were just given and nobody else knows.
    unsafe { libc::close(fd as i32) };
    Ok(())
}

/// tcx came with a file-visible trace: the BTF type of its link.
fn tcx_exists() -> io::Result<()> {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let name = b"\0tcx_link\0";
    if btf.windows(name.len()).any(|window| window == name) {
        Ok(())
    } else {
        Err(io::Error::other("the kernel has no tcx"))
    }
}

fn probe(name: &str, result: &io::Result<()>, yes: &str, no: &str) -> Probe {
    Probe {
        name: name.into(),
        available: result.is_ok(),
        detail: match result {
            Ok(()) => yes.into(),
            Err(error) => format!("{no} ({error})"),
        },
    }
}

/// Tries everything once.
pub fn run(bpffs: &Path, cgroup: Option<&Path>) -> (Features, Vec<Probe>) {
    let bpf = helper_loads(5);
    let coarse = helper_loads(KTIME_GET_COARSE_NS);
    let tcx = tcx_exists();
    let pins = nix::sys::statfs::statfs(bpffs).map_err(io::Error::from).and_then(|fs| {
        (fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
            .then_some(())
            .ok_or_else(|| io::Error::other("not a BPF file system"))
    });
    let mut probes = vec![
        probe(
            "bpf",
            &bpf,
            "programs load",
            "no eBPF: needs CAP_BPF and CAP_NET_ADMIN (or root) and CONFIG_BPF_SYSCALL",
        ),
        probe(
            "coarse clock",
            &coarse,
            "bpf_ktime_get_coarse_ns",
            "slower clock, a few ns per packet",
        ),
        probe("tcx", &tcx, "links on tcx", "clsact filters instead"),
        probe(
            "bpffs",
            &pins,
            &format!("pins in {}", bpffs.display()),
            "state does not survive the agent",
        ),
    ];
    probes.push(match cgroup {
        Some(path) => {
            let result = nix::sys::statfs::statfs(path).map_err(io::Error::from).and_then(|fs| {
                (fs.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
                    .then_some(())
                    .ok_or_else(|| io::Error::other("not a cgroup v2 directory"))
            });
            probe(
                "cgroup v2",
                &result,
                &format!("socket load balancing at {}", path.display()),
                "no socket load balancing",
            )
        }
        None => Probe {
            name: "cgroup v2".into(),
            available: false,
            detail: "switched off: --cgroup-root none".into(),
        },
    });
    (
        Features {
            coarse_clock: coarse.is_ok(),
            tcx: tcx.is_ok(),
        },
        probes,
    )
}
