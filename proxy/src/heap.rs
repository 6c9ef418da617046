//! What the allocator keeps, and when it should not.
//!
//! An agent reads everything at its start, and little afterwards; what the start alone needed should not stay for good.

/// Tells the C library to keep little, for a process that is idle nearly always. To be called before threads are
/// started; without effect where the C library has no such settings.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets numbers of the allocator, and no other thread is there yet.
    unsafe {
        // Threads that read one after the other would leave what they freed in an arena each.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // A file's text is mapped, and unmapped when it was read. Fixed, or the limit would follow the largest file up.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1024 * 1024);
    }
}

/// Gives freed pages back to the kernel; by itself the C library keeps those below the last allocation.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches only what is free; may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
