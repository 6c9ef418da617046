//! `pause`: the first process of a pod's sandbox. It holds the namespaces, and reaps what is orphaned in a shared process
//! namespace. No libc and no standard library, so that it is a few kilobytes in one file.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

/// Signals of Linux that matter here; bit `n - 1` of a mask stands for signal `n`.
const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const MASK: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
/// Bytes of the kernel's signal set.
const MASK_BYTES: usize = 8;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// Process id that stands for every child.
const ANY_CHILD: usize = usize::MAX;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const EXIT: usize = 60;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const EXIT: usize = 93;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const WAIT4: usize = 260;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "and rsp, -16", "call {main}", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {main}", main = sym main);

/// # Safety
/// As the system call asks: pointers must be valid.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel changes nothing but the registers named and what the caller's pointers allow.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, options(nostack));
    }
    result
}

extern "C" fn main() -> ! {
    let mask = MASK;
    let mask = &raw const mask as usize;
    // Blocked signals wait for us even as process 1, whose unhandled ones the kernel drops.
    // SAFETY: `mask` outlives the call.
    unsafe { call(number::RT_SIGPROCMASK, SIG_BLOCK, mask, 0, MASK_BYTES) };
    loop {
        // SAFETY: `mask` outlives the call; no information about the signal is asked for.
        let signal = unsafe { call(number::RT_SIGTIMEDWAIT, mask, 0, 0, MASK_BYTES) };
        if signal == SIGINT as isize || signal == SIGTERM as isize {
            // SAFETY: ends this process.
            unsafe { call(number::EXIT, 0, 0, 0, 0) };
        }
        // One SIGCHLD may stand for several children.
        // SAFETY: asks for no status.
        while unsafe { call(number::WAIT4, ANY_CHILD, 0, WNOHANG, 0) } > 0 {}
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
