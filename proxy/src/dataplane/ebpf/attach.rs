//! Programs on interfaces and cgroups, kept alive by pinned links.

use super::load::{kernel, whole};
use crate::error::ApplyError;
use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// What an interface is to us; decides its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Carries one pod (or a bridge port of one).
    Pod,
    /// Carries traffic from and to other hosts.
    Net,
    /// `lo`: what this node sends to itself.
    Loopback,
}

impl Role {
    /// Every program with every direction in which it is ever attached.
    const ALL_PROGRAMS: [(&'static str, TcAttachType); 4] = [
        ("from_pod", TcAttachType::Ingress),
        ("to_pod", TcAttachType::Egress),
        ("from_net", TcAttachType::Ingress),
        ("to_net", TcAttachType::Egress),
    ];

    /// Programs by direction.
    fn programs(self) -> &'static [(&'static str, TcAttachType)] {
        match self {
            Self::Pod => &[("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)],
            Self::Net => &[("from_net", TcAttachType::Ingress), ("to_net", TcAttachType::Egress)],
            Self::Loopback => &[("to_net", TcAttachType::Egress)],
        }
    }
}

/// Socket programs in the order in which they are attached: the way back before the way out, so that no socket is
/// translated whose answers are not.
const SOCKET: [&str; 8] = [
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];

/// One attached program.
#[derive(Debug)]
enum Held {
    /// A link pinned in bpffs: stays when the agent goes.
    Pinned(PinnedLink),
    /// A link that goes with the agent.
    Link(FdLink),
    /// A clsact filter: stays until it is removed.
    Filter(SchedClassifierLink),
}

/// Everything that is attached.
#[derive(Debug)]
pub(super) struct Attachments {
    pins: Option<PathBuf>,
    tcx: bool,
    interfaces: BTreeMap<u32, (String, Role, Vec<Held>)>,
    sockets: Vec<Held>,
}

/// Place of our clsact filters, so that a restarted agent finds and replaces its own in one step.
const FILTER_PRIORITY: u16 = 0xfa1;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

fn other(op: String) -> impl FnOnce(aya::programs::ProgramError) -> ApplyError {
    move |error| ApplyError::Kernel {
        op,
        source: whole(&error),
    }
}

impl Attachments {
    pub(super) fn new(pins: Option<PathBuf>, tcx: bool) -> Result<Self, ApplyError> {
        let pins = pins.map(|root| root.join("links"));
        if let Some(dir) = &pins {
            fs::create_dir_all(dir).map_err(kernel(format!("create {}", dir.display())))?;
        }
        Ok(Self {
            pins,
            tcx,
            interfaces: BTreeMap::new(),
            sockets: Vec::new(),
        })
    }

    /// Loads every program; attaching comes later, once the maps hold a plan.
    pub(super) fn load(bpf: &mut Ebpf, sockets: bool) -> Result<(), ApplyError> {
        for name in ["from_pod", "to_pod", "from_net", "to_net"] {
            classifier(bpf, name)?
                .load()
                .map_err(other(format!("load program {name}")))?;
        }
        if sockets {
            for name in SOCKET {
                socket(bpf, name)?
                    .load()
                    .map_err(other(format!("load program {name}")))?;
            }
        }
        Ok(())
    }

    pub(super) fn tcx(&self) -> bool {
        self.tcx
    }

    pub(super) fn interfaces(&self) -> impl Iterator<Item = (u32, &str, Role)> {
        self.interfaces
            .iter()
            .map(|(ifindex, (name, role, _))| (*ifindex, name.as_str(), *role))
    }

    pub(super) fn role(&self, ifindex: u32) -> Option<Role> {
        self.interfaces.get(&ifindex).map(|(_, role, _)| *role)
    }

    pub(super) fn attach(&mut self, bpf: &mut Ebpf, ifindex: u32, name: &str, role: Role) -> Result<(), ApplyError> {
        if self.role(ifindex) == Some(role) {
            return Ok(());
        }
        self.detach(ifindex);
        let mut held = Vec::new();
        for (program, direction) in role.programs() {
            held.push(self.attach_one(bpf, ifindex, name, program, *direction)?);
        }
        self.interfaces.insert(ifindex, (name.to_owned(), role, held));
        Ok(())
    }

    fn attach_one(
        &self,
        bpf: &mut Ebpf,
        ifindex: u32,
        name: &str,
        program: &str,
        direction: TcAttachType,
    ) -> Result<Held, ApplyError> {
        let op = format!("attach {program} to {name}");
        let failed = |error: io::Error| ApplyError::Kernel {
            op: op.clone(),
            source: error,
        };
        let classifier = classifier(bpf, program)?;
        if !self.tcx {
            // An existing clsact is as good as a new one.
            if let Err(error) = tc::qdisc_add_clsact(name)
                && !is_exists(&error)
            {
                return Err(failed(whole(&error)));
            }
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: FILTER_PRIORITY,
                handle: FILTER_HANDLE,
                classid: None,
            });
            let id = match classifier.attach_with_options(name, direction, options) {
                Ok(id) => id,
                // A former agent's filter is in our place: replaced, no packet without one.
                Err(_) => {
                    let former = SchedClassifierLink::attached(name, direction, FILTER_PRIORITY, FILTER_HANDLE, None);
                    classifier
                        .attach_to_link(former.map_err(&failed)?)
                        .map_err(other(op.clone()))?
                }
            };
            let link = classifier.take_link(id).map_err(other(op.clone()))?;
            return Ok(Held::Filter(link));
        }
        let pin = self.pins.as_ref().map(|dir| dir.join(format!("{ifindex}-{program}")));
        let former = pin.as_ref().and_then(|path| PinnedLink::from_pin(path).ok());
        let id = match former.and_then(|link| SchedClassifierLink::try_from(FdLink::from(link)).ok()) {
            // Same interface, new program: replaced in place, no packet without one.
            Some(link) => classifier.attach_to_link(link),
            None => classifier.attach_with_options(name, direction, TcAttachOptions::TcxOrder(LinkOrder::default())),
        };
        let id = match id {
            Ok(id) => id,
            // The pinned link outlived its interface, whose index was given away again.
            Err(_) if pin.is_some() => classifier
                .attach_with_options(name, direction, TcAttachOptions::TcxOrder(LinkOrder::default()))
                .map_err(other(op.clone()))?,
            Err(error) => return Err(other(op.clone())(error)),
        };
        let link = classifier.take_link(id).map_err(other(op.clone()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(whole(&error)))?;
        hold(link, pin).map_err(failed)
    }

    /// Takes our programs off an interface; one that is gone took them along.
    pub(super) fn detach(&mut self, ifindex: u32) {
        let Some((_, _, held)) = self.interfaces.remove(&ifindex) else {
            return;
        };
        for link in held {
            release(link);
        }
    }

    /// Attaches the socket programs to a cgroup.
    pub(super) fn attach_sockets(&mut self, bpf: &mut Ebpf, cgroup: &Path) -> Result<(), ApplyError> {
        let mut held = Vec::with_capacity(SOCKET.len());
        let dir = fs::File::open(cgroup).map_err(kernel(format!("open cgroup {}", cgroup.display())))?;
        for name in SOCKET {
            let op = format!("attach {name} to cgroup {}", cgroup.display());
            let failed = |error: io::Error| ApplyError::Kernel {
                op: op.clone(),
                source: error,
            };
            let program = socket(bpf, name)?;
            // The kernel refuses flags here: links of several owners always live side by side.
            let id = program
                .attach(&dir, CgroupAttachMode::Single)
                .map_err(other(op.clone()))?;
            let link = program.take_link(id).map_err(other(op.clone()))?;
            let link = FdLink::try_from(link).map_err(|error| failed(whole(&error)))?;
            let pin = self.pins.as_ref().map(|dir| dir.join(format!("socket-{name}")));
            // A former agent's program ran until now; both at once do no harm: the second finds nothing to translate.
            held.push(hold(link, pin).map_err(failed)?);
        }
        self.sockets = held;
        Ok(())
    }

    /// Whether socket programs are attached.
    pub(super) fn sockets(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// Removes links and filters of a former agent that nobody attached anew: of interfaces that are gone or have another
    /// role by now. Spares `interfaces` that are still to be attached: what a former agent left there works.
    pub(super) fn prune(&self, spare: &BTreeSet<u32>) {
        if let Some(dir) = &self.pins
            && let Ok(entries) = fs::read_dir(dir)
        {
            for entry in entries.flatten() {
                if !self.keeps(&entry.file_name().to_string_lossy(), spare) {
                    // Best effort: the next start tries again.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        let Ok(interfaces) = nix::net::if_::if_nameindex() else {
            return;
        };
        for interface in interfaces
            .iter()
            .filter(|interface| !spare.contains(&interface.index()))
        {
            let name = interface.name().to_string_lossy();
            let role = if self.tcx { None } else { self.role(interface.index()) };
            for (program, direction) in Role::ALL_PROGRAMS {
                if !role.is_some_and(|role| role.programs().contains(&(program, direction))) {
                    // No filter of ours is the usual answer.
                    let _ = tc::qdisc_detach_program(&name, direction, program);
                }
            }
        }
    }

    /// Whether a pinned link is one of ours of today.
    fn keeps(&self, pin: &str, spare: &BTreeSet<u32>) -> bool {
        match pin.split_once('-') {
            Some(("socket", _)) => self.sockets(),
            Some((ifindex, program)) => ifindex.parse().is_ok_and(|ifindex: u32| {
                let ours = self.role(ifindex).map(Role::programs);
                self.tcx && ours.is_some_and(|programs| programs.iter().any(|(name, _)| *name == program))
                    || spare.contains(&ifindex)
            }),
            None => false,
        }
    }
}

impl Drop for Attachments {
    /// Filters stay when the agent goes, as pinned links do.
    fn drop(&mut self) {
        if self.pins.is_none() {
            return;
        }
        for (_, _, held) in core::mem::take(&mut self.interfaces).into_values() {
            for link in held {
                if let Held::Filter(link) = link {
                    core::mem::forget(link);
                }
            }
        }
    }
}

/// Takes our clsact filters off every interface of this network namespace. Returns how many there were.
pub(super) fn remove_filters() -> io::Result<usize> {
    let mut removed = 0;
    for interface in &nix::net::if_::if_nameindex()? {
        let name = interface.name().to_string_lossy();
        for (program, direction) in Role::ALL_PROGRAMS {
            // An interface without clsact, or one that goes meanwhile, has no filter of ours.
            if tc::qdisc_detach_program(&name, direction, program).is_ok() {
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Keeps a link: pinned in the place of an older one, or as long as we live.
fn hold(link: FdLink, pin: Option<PathBuf>) -> io::Result<Held> {
    let Some(path) = pin else { return Ok(Held::Link(link)) };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    link.pin(&path).map(Held::Pinned).map_err(io::Error::other)
}

fn release(held: Held) {
    match held {
        // The pin may be gone already with a bpffs that was unmounted.
        Held::Pinned(link) => drop(link.unpin()),
        Held::Link(link) => drop(link),
        Held::Filter(link) => drop(link),
    }
}

/// EEXIST, which the loader keeps inside a private type.
fn is_exists(error: &tc::TcError) -> bool {
    matches!(error, tc::TcError::AlreadyAttached) || whole(error).to_string().contains("(os error 17)")
}

fn classifier<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ApplyError> {
    bpf.program_mut(name)
        .ok_or_else(|| io::Error::other("not in the BPF object"))
        .and_then(|program| program.try_into().map_err(io::Error::other))
        .map_err(kernel(format!("find program {name}")))
}

fn socket<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, ApplyError> {
    bpf.program_mut(name)
        .ok_or_else(|| io::Error::other("not in the BPF object"))
        .and_then(|program| program.try_into().map_err(io::Error::other))
        .map_err(kernel(format!("find program {name}")))
}
