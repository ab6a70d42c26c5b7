//! The CLI's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{Reply, Request};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for an answer for which a program is loaded.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "cannot reach the daemon at {path}: {source}; is `vipline run` or `vipline node` running, and is --socket right?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {path} did not answer: {source}")]
    Talk {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is not what this version expects.
    #[error("the daemon at {path} speaks another version of the protocol: {source}")]
    Decode {
        /// The socket.
        path: PathBuf,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
}

/// Asks the daemon at `path`.
///
/// # Errors
///
/// When nobody listens there, the connection breaks, versions differ, or the daemon refuses.
pub fn ask<T: DeserializeOwned>(path: &Path, request: &Request) -> Result<T, ClientError> {
    Stream::open(path, request, PATIENCE).map(|(answer, _)| answer)
}

/// As [`ask`], for answers that go on.
///
/// # Errors
///
/// As [`ask`].
pub fn follow<T: DeserializeOwned>(path: &Path, request: &Request) -> Result<(T, Stream), ClientError> {
    let (answer, stream) = Stream::open(path, request, LONG_PATIENCE)?;
    // From now on the daemon speaks when there is something to say.
    stream.reader.get_ref().set_read_timeout(None).map_err(stream.talk())?;
    Ok((answer, stream))
}

/// The rest of an answer.
#[derive(Debug)]
pub struct Stream {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    line: String,
}

impl Stream {
    fn open<T: DeserializeOwned>(path: &Path, request: &Request, patience: Duration) -> Result<(T, Self), ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let mut stream = Self {
            path: path.to_owned(),
            reader: BufReader::new(stream),
            line: String::new(),
        };
        let mut line = serde_json::to_string(request).map_err(stream.decode())?;
        line.push('\n');
        let mut socket = stream.reader.get_ref();
        let said = socket
            .set_read_timeout(Some(patience))
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| socket.write_all(line.as_bytes()));
        said.map_err(stream.talk())?;
        match stream.next_line()? {
            Some(Reply::Ok(value)) => Ok((serde_json::from_value(value).map_err(stream.decode())?, stream)),
            Some(Reply::Error(why)) => Err(ClientError::Refused(why)),
            // It ended between question and answer.
            None => Err(stream.talk()(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The next line; none when the daemon has hung up.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or a line is not what this version expects.
    pub fn next_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        self.line.clear();
        if self.reader.read_line(&mut self.line).map_err(self.talk())? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&self.line).map(Some).map_err(self.decode())
    }

    /// Whether more has come than was read: [`Self::next_line`] hardly waits.
    pub fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    /// What says, from another thread, that it is enough: when it is called, the daemon comes to an end.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub fn stopper(&self) -> Result<impl FnOnce() + Send + 'static, ClientError> {
        let socket = self.reader.get_ref().try_clone().map_err(self.talk())?;
        Ok(move || {
            // A daemon that has gone away needs no word.
            drop(socket.shutdown(Shutdown::Write));
        })
    }

    fn talk(&self) -> impl FnOnce(io::Error) -> ClientError + use<> {
        let path = self.path.clone();
        |source| ClientError::Talk { path, source }
    }

    fn decode(&self) -> impl FnOnce(serde_json::Error) -> ClientError + use<> {
        let path = self.path.clone();
        |source| ClientError::Decode { path, source }
    }
}
