//! Descriptor tables of threads, the process's descriptor limit, and signals kept off threads.

#![allow(unsafe_code)]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Keeps every signal off the calling thread and the threads that it starts from now on.
///
/// Call it in a thread before [`unshare_files`]: a handler that writes to a pipe (all crates that
/// turn signals into readiness do) would write into whatever socket has that number in the
/// thread's own table.
pub fn block_signals() -> io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` writes a whole `sigset_t` to the pointer, which is valid for writes;
    // `pthread_sigmask` reads it only after that, and takes null for "no old mask wanted".
    // Neither rustix nor std has a call for this.
    let code = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut())
    };
    // The error is the return value here, not errno.
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Gives the calling thread a descriptor table of its own, a copy of the one it had.
///
/// From then on RLIMIT_NOFILE counts for this thread alone. What the thread needs of others
/// (wakers, epoll descriptors) must have been made before: a descriptor that any other thread
/// makes later is another one, or none, in this thread, and the other way round. So no `OwnedFd`
/// or socket may cross the thread's border after this call; only SCM_RIGHTS moves descriptors.
///
/// # Errors
/// The errors of `unshare(2)`: ENOMEM, or EPERM under a seccomp filter.
pub fn unshare_files() -> io::Result<()> {
    // SAFETY: the callers keep the condition of `unshare_unsafe`, as the documentation above requires:
    // descriptors made after the call stay inside their thread. A broken rule gives EBADF or a
    // foreign socket, never memory unsafety.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES)? };
    Ok(())
}

/// Whether a thread may have a descriptor table of its own: seccomp filters of containers forbid it unless
/// the process has CAP_SYS_ADMIN.
#[expect(clippy::disallowed_methods, reason = "tried in a thread that ends, and with it its table")]
pub fn may_unshare_files() -> bool {
    let tried = std::thread::Builder::new().spawn(|| unshare_files().is_ok());
    // Without a thread no shard can start either, and that says why.
    tried.is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// Closes this table's copies of descriptors that other tables go on using. For numbers inherited
/// by [`unshare_files`] only, in the thread that called it.
pub fn close_copies(copies: &[std::os::fd::RawFd]) {
    for copy in copies {
        // SAFETY: the numbers come from descriptors that are owned in another table; in this one
        // nobody owns the copies, so closing them can't pull one from under its owner.
        unsafe { libc::close(*copy) };
    }
}

/// A copy of a descriptor by its number, for a thread whose table has come with the process's.
///
/// # Errors
/// The number is no open descriptor of this table, or no other number is free.
pub fn copy_of(number: std::os::fd::RawFd) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: the number is borrowed for this call only, in which the kernel checks that it is open.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    descriptor.try_clone_to_owned()
}

/// Raises the soft limit of descriptors to the hard one. Returns (soft, hard) as they are now;
/// `u64::MAX` stands for no limit. A limit that can't be raised stays as it was.
pub fn raise_nofile() -> (u64, u64) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(_) => limit,
    };
    (now.current.unwrap_or(u64::MAX), now.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test needs a thread that ends")]
    fn a_thread_has_a_table_of_its_own() {
        let name = std::env::temp_dir().join(format!("roost-tables-{}", std::process::id()));
        let path = name.clone();
        let worker = std::thread::spawn(move || {
            block_signals().unwrap();
            unshare_files().unwrap();
            let file = std::fs::File::create(&path).unwrap();
            let number = file.as_raw_fd();
            // The same number in the process's table (that of the main thread) is not this file.
            let here = std::fs::read_link(format!("/proc/thread-self/fd/{number}")).ok();
            let main = std::fs::read_link(format!("/proc/self/fd/{number}")).ok();
            (here == Some(path.clone()), main == Some(path))
        });
        let seen = worker.join().unwrap();
        std::fs::remove_file(name).unwrap();
        assert_eq!(seen, (true, false));
    }

    #[test]
    fn the_soft_limit_meets_the_hard_one() {
        let (soft, hard) = raise_nofile();
        assert_eq!(soft, hard);
    }
}
