//! A network of its own (a Linux network namespace) for child processes, without a name in any file system.
//!
//! It lives as long as this value or a process in it. Must not know: what its links lead to.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, anyhow};
use tokio::process::Command;

/// See the module.
#[derive(Debug)]
pub struct Network(OwnedFd);

impl Network {
    /// Makes one that has nothing but a loopback that is down.
    ///
    /// # Errors
    /// The kernel has no such namespaces, or this process may not make them.
    pub fn make() -> anyhow::Result<Self> {
        let made = on_a_thread(|| {
            // SAFETY: no memory is involved.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        Ok(Self(made?.context("can't make a network namespace")?.into()))
    }

    /// Does something short in it, such as opening a socket; this thread waits.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let entered = on_a_thread(|| enter(&self.0).map(|()| work()));
        entered?.context("can't enter a network namespace")
    }

    /// Lets `command` run in it.
    pub fn enter(&self, command: &mut Command) -> anyhow::Result<()> {
        let network = self.0.try_clone().context("can't keep a network namespace open")?;
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe; the descriptor is open as long as
        // the command, and closed by exec.
        unsafe {
            command.pre_exec(move || enter(&network));
        }
        Ok(())
    }
}

/// Takes the calling thread into it. Async-signal-safe.
fn enter(network: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved, and the descriptor is open.
    match unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A namespace is the calling thread's alone: a short-lived thread leaves the rest of this process where it is.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a thread in a network of its own panicked"))
}
