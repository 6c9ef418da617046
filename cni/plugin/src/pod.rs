//! The pod's side as CHECK wants it, and its loopback link. Both enter the pod's namespace with the whole process, so
//! only a plugin that ends afterwards calls them.

use crate::spec::{Code, Failure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    path::Path,
};

/// Opens a network namespace.
///
/// # Errors
/// There is none at the path ([`Code::UnknownContainer`]).
pub fn open(netns: &Path) -> Result<File, Failure> {
    File::open(netns).map_err(|error| {
        Failure::new(
            Code::UnknownContainer,
            format!("the network namespace {} cannot be opened", netns.display()),
            error.to_string(),
        )
    })
}

/// Moves this thread into a network namespace.
///
/// # Errors
/// The file is none, or it is not allowed ([`Code::Kernel`]).
pub fn enter(netns: &File, path: &Path) -> Result<(), Failure> {
    // SAFETY: setns takes no pointers, and the descriptor is open.
    if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Failure::new(
        Code::Kernel,
        format!("the network namespace {} cannot be entered", path.display()),
        format!("{error}; this needs CAP_SYS_ADMIN"),
    ))
}

/// The parts of an earlier result that CHECK looks at.
#[derive(Debug, Deserialize)]
struct Earlier {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: IpNet,
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Route {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
}

/// Compares what is in the pod's namespace, which this thread has entered, with the result of ADD.
///
/// # Errors
/// The first difference ([`Code::Differs`]), or a result that cannot be read ([`Code::Decoding`]).
pub fn check(prev: &Value, ifname: &str) -> Result<(), Failure> {
    let earlier = Earlier::deserialize(prev)
        .map_err(|error| Failure::new(Code::Decoding, "prevResult cannot be read", error.to_string()))?;
    let differs = |msg: String| Failure::new(Code::Differs, msg, "delete the pod; its controller makes a new one");
    let mine = |at: Option<usize>| {
        let interface = at.and_then(|at| earlier.interfaces.get(at));
        interface.is_none_or(|it| it.name == ifname && !it.sandbox.is_empty())
    };
    let links = links().map_err(|error| Failure::new(Code::Io, "the pod's links cannot be read", error.to_string()))?;
    if !links.iter().any(|link| link.name == ifname) {
        return Err(differs(format!("the pod has no link {ifname}")));
    }
    for interface in earlier
        .interfaces
        .iter()
        .filter(|it| it.name == ifname && !it.mac.is_empty())
    {
        let same = |link: &Link| {
            link.mac
                .as_deref()
                .is_some_and(|mac| mac.eq_ignore_ascii_case(&interface.mac))
        };
        if !links.iter().any(|link| link.name == ifname && same(link)) {
            return Err(differs(format!(
                "{ifname} has another MAC address than {}",
                interface.mac
            )));
        }
    }
    for ip in earlier.ips.iter().filter(|ip| mine(ip.interface)) {
        let addr = ip.address.addr();
        if !links.iter().any(|link| link.name == ifname && link.addr == Some(addr)) {
            return Err(differs(format!("{ifname} lacks the address {addr}")));
        }
    }
    for route in &earlier.routes {
        let found = has_route(route, ifname)
            .map_err(|error| Failure::new(Code::Io, "the pod's routes cannot be read", error.to_string()))?;
        if !found {
            return Err(differs(format!("the pod lacks the route to {} by {ifname}", route.dst)));
        }
    }
    Ok(())
}

/// Brings the loopback link of the namespace up that this thread has entered.
///
/// # Errors
/// The kernel refused ([`Code::Kernel`]).
pub fn loopback_up() -> Result<(), Failure> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: all fields of ifreq may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is a valid ifreq with a name and flags. A negative descriptor is refused.
    let done = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is ours, or negative and refused.
    unsafe { libc::close(fd) };
    if done == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Code::Kernel,
        "the loopback link cannot be brought up",
        error.to_string(),
    ))
}

/// Whether the loopback link of the namespace is up that this thread has entered.
///
/// # Errors
/// It is down ([`Code::Differs`]), or nothing can be read.
pub fn loopback_check() -> Result<(), Failure> {
    let links = links().map_err(|error| Failure::new(Code::Io, "the pod's links cannot be read", error.to_string()))?;
    if links.iter().any(|link| link.name == "lo" && link.up) {
        return Ok(());
    }
    Err(Failure::new(
        Code::Differs,
        "the loopback link is down",
        "delete the pod; its controller makes a new one",
    ))
}

/// The result of the loopback plugin.
#[must_use]
pub fn loopback_result(version: &str, netns: &Path) -> Value {
    let numbered = version.starts_with("0.");
    let ip = |address: &str, number: &str| {
        let mut ip = json!({ "address": address, "interface": 0 });
        if numbered {
            ip["version"] = json!(number);
        }
        ip
    };
    json!({
        "cniVersion": version,
        "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns.to_string_lossy() }],
        "ips": [ip("127.0.0.1/8", "4"), ip("::1/128", "6")],
        "dns": {},
    })
}

/// One entry of getifaddrs(3): a link with its MAC address, or with one of its addresses.
#[derive(Debug)]
struct Link {
    name: String,
    up: bool,
    mac: Option<String>,
    addr: Option<IpAddr>,
}

fn links() -> io::Result<Vec<Link>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `first` is valid for a pointer.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut links = Vec::new();
    let mut next = first;
    // SAFETY: the list is valid until it is freed below, and `next` walks along it.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: every entry has a name, which ends in NUL.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        let (mac, addr) = if entry.ifa_addr.is_null() {
            (None, None)
        } else {
            // SAFETY: the pointer is not null and valid as long as the list.
            unsafe { read(entry.ifa_addr) }
        };
        let up = entry.ifa_flags & libc::IFF_UP as libc::c_uint != 0;
        links.push(Link { name, up, mac, addr });
        next = entry.ifa_next;
    }
    // SAFETY: `first` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(links)
}

/// # Safety
/// `addr` points to a socket address of the family that it names.
unsafe fn read(addr: *const libc::sockaddr) -> (Option<String>, Option<IpAddr>) {
    // SAFETY: by the contract every variant is as long as its family says; reads need no alignment.
    unsafe {
        match i32::from((*addr).sa_family) {
            libc::AF_INET => {
                let v4 = addr.cast::<libc::sockaddr_in>().read_unaligned();
                (None, Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into()))
            }
            libc::AF_INET6 => {
                let v6 = addr.cast::<libc::sockaddr_in6>().read_unaligned();
                (None, Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into()))
            }
            libc::AF_PACKET => {
                let link = addr.cast::<libc::sockaddr_ll>().read_unaligned();
                let bytes = link.sll_addr.iter().take(6).map(|byte| format!("{byte:02x}"));
                (Some(bytes.collect::<Vec<_>>().join(":")), None)
            }
            _ => (None, None),
        }
    }
}

/// Looks a route up in `/proc/net/route` or `/proc/net/ipv6_route`, which show what the reader's namespace has.
fn has_route(route: &Route, ifname: &str) -> io::Result<bool> {
    let v4 = route.dst.network().is_ipv4();
    let file = if v4 { "route" } else { "ipv6_route" };
    let table = fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
    Ok(table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // IPv4: name, destination, gateway, four others, mask; numbers in host order. IPv6: destination, prefix length,
        // source, prefix length, gateway, four others, name.
        let entry = if v4 {
            let at = |n: usize| fields.get(n).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let address = |n: usize| at(n).map(|bits| IpAddr::from(Ipv4Addr::from(bits.to_ne_bytes())));
            let bits = at(7).map(u32::count_ones);
            (fields.first(), address(1), bits, address(2))
        } else {
            let address = |n: usize| {
                let bits = u128::from_str_radix(fields.get(n)?, 16).ok()?;
                Some(IpAddr::from(Ipv6Addr::from_bits(bits)))
            };
            let bits = fields.get(1).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            (fields.last(), address(0), bits, address(4))
        };
        entry.0 == Some(&ifname)
            && entry.1 == Some(route.dst.network())
            && entry.2 == Some(u32::from(route.dst.prefix_len()))
            && route.gw.is_none_or(|gw| entry.3 == Some(gw))
    }))
}
