//! The daemon's end of the control socket: accepts, reads one line, hands it to the main loop, writes one line. Where the answer
//! goes on, the socket is handed to who makes it; never does one client make another wait.

use std::{
    io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{MAX_CLIENTS, MAX_REQUEST, Reply, Request};

/// Longest time a client may take to say what it wants: those that say nothing keep the others waiting for a place no longer.
const HEARING: Duration = Duration::from_secs(1);
/// Longest time a client may take to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("control socket {path}: {source}{}", self.advice())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

impl ListenError {
    fn advice(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => "; another vipline answers there: stop it, or set `control_socket`",
            io::ErrorKind::PermissionDenied => "; run as root, or set `control_socket` to a place you may write",
            _ => "",
        }
    }
}

/// A question in the main loop's hands; dropping it tells the client that the daemon is going away.
pub struct Answer {
    /// What is asked.
    pub request: Request,
    reply: oneshot::Sender<Told>,
}

/// What became of a question.
enum Told {
    /// The answer.
    All(Reply),
    /// Its first line, and who goes on; he is dropped without a call when the client is gone.
    First(Reply, Continuation),
}

type Continuation = Box<dyn FnOnce(StdStream) + Send>;

impl Answer {
    /// Answers with a view, or with why there is none.
    pub fn with<T: serde::Serialize>(self, result: Result<T, String>) {
        let reply = match result.map(serde_json::to_value) {
            Ok(Ok(value)) => Reply::Ok(value),
            Ok(Err(error)) => Reply::Error(error.to_string()),
            Err(why) => Reply::Error(why),
        };
        // A client that has gone away needs no answer.
        drop(self.reply.send(Told::All(reply)));
    }

    /// Answers with the first line of what goes on, and hands the socket (blocking) to `go_on`, in a thread of the runtime: it must
    /// return at once. When the client is gone, `go_on` is dropped instead.
    pub fn with_more<T: serde::Serialize>(self, first: &T, go_on: impl FnOnce(StdStream) + Send + 'static) {
        match serde_json::to_value(first) {
            Ok(value) => drop(self.reply.send(Told::First(Reply::Ok(value), Box::new(go_on)))),
            Err(error) => drop(self.reply.send(Told::All(Reply::Error(error.to_string())))),
        }
    }
}

/// The open socket; removed when dropped.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    questions: mpsc::Receiver<Answer>,
}

impl Listener {
    /// Opens the socket at `path` (mode 0600) and serves it on the current runtime. A socket that nobody answers is replaced.
    ///
    /// # Errors
    ///
    /// When the path cannot be used, or another daemon answers there.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        let fail = |source| ListenError {
            path: path.to_owned(),
            source,
        };
        if StdStream::connect(path).is_ok() {
            return Err(fail(io::ErrorKind::AddrInUse.into()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            Ok(()) | Err(_) => {}
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(fail)?;
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let (sender, questions) = mpsc::channel(MAX_CLIENTS);
        tokio::spawn(accept(listener, sender));
        Ok(Self {
            path: path.to_owned(),
            questions,
        })
    }

    /// The next question; never ends while the socket is open.
    pub async fn next(&mut self) -> Option<Answer> {
        self.questions.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Best effort: a socket that is gone already is what we want.
        drop(std::fs::remove_file(&self.path));
    }
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Answer>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    serve(stream, &questions).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if questions.is_closed() {
            return;
        }
    }
}

async fn serve(stream: UnixStream, questions: &mpsc::Sender<Answer>) {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST as u64));
    let read = match timeout(HEARING, reader.read_until(b'\n', &mut line)).await {
        Ok(read) => read,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let told = match read.map_err(|error| error.to_string()).and_then(|_| parse(&line)) {
        Err(why) => Told::All(Reply::Error(why)),
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            let asked = questions.send(Answer { request, reply: sender }).await;
            match (asked, receiver.await) {
                (Ok(()), Ok(told)) => told,
                _ => Told::All(Reply::Error("the daemon is stopping".to_owned())),
            }
        }
    };
    match told {
        // A client that does not take its answer in time goes without.
        Told::All(reply) => drop(write(&mut writer, &reply).await),
        Told::First(reply, go_on) => {
            if write(&mut writer, &reply).await.is_ok()
                && let Ok(stream) = reader.into_inner().into_inner().reunite(writer)
                && let Ok(stream) = stream.into_std()
                && stream.set_nonblocking(false).is_ok()
            {
                go_on(stream);
            }
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    timeout(PATIENCE, writer.write_all(&text)).await?
}

fn parse(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| format!("not a request of this version: {error}"))
}
