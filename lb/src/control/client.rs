//! The CLI's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{Reply, Request};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let talk = |source| ClientError::Talk {
        path: path.to_owned(),
        source,
    };
    let decode = |source| ClientError::Decode {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(talk)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(talk)?;
    let mut line = serde_json::to_string(request).map_err(decode)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(talk)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer).map_err(talk)? == 0 {
        // It ended between question and answer.
        return Err(talk(io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_str(&answer).map_err(decode)? {
        Reply::Ok(value) => serde_json::from_value(value).map_err(decode),
        Reply::Error(why) => Err(ClientError::Refused(why)),
    }
}
