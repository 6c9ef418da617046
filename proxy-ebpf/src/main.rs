//! Program entry points: name, hook, and what a miss means there. TC programs let a packet pass that is not theirs;
//! socket programs leave a call alone.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is moved into a map call is copied on a stack of 512 bytes"
)]
#![allow(
    missing_docs,
    reason = "a program has no API; its ABI is documented in fairlead-proxy-common"
)]

#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod clock;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod ended;
#[cfg(target_arch = "bpf")]
mod family;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod nat;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod related;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod sock;
#[cfg(target_arch = "bpf")]
mod tc;

/// On the host this crate is only a name: it is built for the kernel by the agent's build script.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[allow(
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the loader finds programs by their exported names; the attribute macros decide their signatures"
)]
mod programs {
    use crate::{
        hook::Hook,
        packet::Skb,
        sock::{self, Call},
        tc,
    };
    use aya_ebpf::{
        macros::{cgroup_sock_addr, classifier},
        programs::{SockAddrContext, TcContext},
    };

    /// Let the call go on; the only thing these programs ever say.
    const PROCEED: i32 = 1;

    #[classifier]
    pub fn from_pod(ctx: TcContext) -> i32 {
        tc::run(Skb(ctx.skb.skb), Hook::FromPod)
    }

    #[classifier]
    pub fn to_pod(ctx: TcContext) -> i32 {
        tc::run(Skb(ctx.skb.skb), Hook::ToPod)
    }

    #[classifier]
    pub fn from_net(ctx: TcContext) -> i32 {
        tc::run(Skb(ctx.skb.skb), Hook::FromNet)
    }

    #[classifier]
    pub fn to_net(ctx: TcContext) -> i32 {
        tc::run(Skb(ctx.skb.skb), Hook::ToNet)
    }

    #[cgroup_sock_addr(connect4)]
    pub fn connect4(ctx: SockAddrContext) -> i32 {
        sock::outward_v4(Call(ctx.sock_addr), false);
        PROCEED
    }

    #[cgroup_sock_addr(connect6)]
    pub fn connect6(ctx: SockAddrContext) -> i32 {
        sock::outward_v6(Call(ctx.sock_addr), false);
        PROCEED
    }

    #[cgroup_sock_addr(sendmsg4)]
    pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
        sock::outward_v4(Call(ctx.sock_addr), true);
        PROCEED
    }

    #[cgroup_sock_addr(sendmsg6)]
    pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
        sock::outward_v6(Call(ctx.sock_addr), true);
        PROCEED
    }

    #[cgroup_sock_addr(recvmsg4)]
    pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
        sock::inward_v4(Call(ctx.sock_addr));
        PROCEED
    }

    #[cgroup_sock_addr(recvmsg6)]
    pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
        sock::inward_v6(Call(ctx.sock_addr));
        PROCEED
    }

    #[cgroup_sock_addr(getpeername4)]
    pub fn getpeername4(ctx: SockAddrContext) -> i32 {
        sock::inward_v4(Call(ctx.sock_addr));
        PROCEED
    }

    #[cgroup_sock_addr(getpeername6)]
    pub fn getpeername6(ctx: SockAddrContext) -> i32 {
        sock::inward_v6(Call(ctx.sock_addr));
        PROCEED
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
