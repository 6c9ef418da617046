//! The agent's socket: one thread per request, since a request may enter a pod's namespace.

use crate::attach::Node;
use fairlead_cni_plugin::{
    spec::{Code, Failure},
    wire::{Answer, LONGEST, Request, SOCKET},
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::{
    fs,
    io::{self, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Requests at a time; more are told to come again.
const MOST: usize = 512;
/// How long a plugin may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until dropped.
pub(crate) struct Server {
    path: PathBuf,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in a run directory. Only root may connect.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn start(dir: &Path, node: Arc<Node>) -> io::Result<Self> {
        let path = dir.join(SOCKET);
        // Under another name first: who finds the socket may connect to it.
        let new = dir.join(format!("{SOCKET}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, &path)?;
        let accepted = listener.try_clone()?;
        let accepting = thread::Builder::new()
            .name("cni-accept".into())
            .spawn(move || accept(&accepted, &node))?;
        Ok(Self {
            path,
            listener,
            accepting: Some(accepting),
        })
    }
}

impl Drop for Server {
    /// Takes no more requests, and ends those that run.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // SAFETY: shutdown takes no pointers, and the descriptor is open. It makes `accept` return.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(accepting) = self.accepting.take() {
            // A panic of the thread was printed by it.
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &UnixListener, node: &Arc<Node>) {
    let running = Arc::new(AtomicUsize::new(0));
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Out of descriptors or of memory: the requests that run will give some back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                tracing::error!(%error, "a request of the CNI plugin waits");
                match threads.pop() {
                    Some(thread) => drop(thread.join()),
                    None => thread::yield_now(),
                }
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Shut down.
            Err(_) => break,
        };
        threads.retain(|thread| !thread.is_finished());
        let node = Arc::clone(node);
        let counted = Arc::clone(&running);
        let many = running.fetch_add(1, Ordering::Relaxed) >= MOST;
        let serve = move || {
            let served = catch_unwind(AssertUnwindSafe(|| serve(stream, &node, many)));
            counted.fetch_sub(1, Ordering::Relaxed);
            match served {
                Ok(Err(error)) => tracing::debug!(%error, "a request of the CNI plugin broke off"),
                // The plugin sees the connection end and says that no agent answers.
                Err(_) => tracing::error!("a request of the CNI plugin panicked"),
                Ok(Ok(())) => {}
            }
        };
        match thread::Builder::new().name("cni-request".into()).spawn(serve) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                running.fetch_sub(1, Ordering::Relaxed);
                tracing::error!(%error, "no thread for a request of the CNI plugin");
            }
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve(mut stream: UnixStream, node: &Node, many: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (request, netns) = receive(&mut stream)?;
    let answer = match serde_json::from_slice::<Request>(&request) {
        _ if many => Answer::Failed(Failure::new(
            Code::TryAgainLater,
            format!("the node agent works on {MOST} requests already"),
            "try again later",
        )),
        Ok(request) => {
            let what = format!("{request:?}");
            let status = matches!(request, Request::Status { .. });
            let answer = node.answer(request, netns);
            match &answer {
                // Kubelets ask every few seconds, and tell of it themselves.
                Answer::Failed(failure) if status => tracing::debug!(%failure, "not ready"),
                Answer::Failed(failure) => tracing::warn!(request = what, %failure, "refused"),
                _ => {}
            }
            answer
        }
        Err(error) => Answer::Failed(Failure::new(
            Code::Decoding,
            "the node agent cannot read the request",
            format!("{error}; plugin and agent are of different versions: restart the agent, which installs its own"),
        )),
    };
    stream.write_all(&serde_json::to_vec(&answer)?)
}

/// A request to its end, with the descriptor that came along.
fn receive(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut request = vec![0; 16 << 10];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut netns = None;
    let (got, received) = {
        let mut parts = [IoSliceMut::new(&mut request)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut received = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                received.extend(fds);
            }
        }
        (message.bytes, received)
    };
    for fd in received {
        // SAFETY: the kernel just made the descriptor for us. All but the last one close here.
        netns = Some(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    request.truncate(got);
    if got > 0 {
        stream.take(LONGEST).read_to_end(&mut request)?;
    }
    Ok((request, netns))
}
