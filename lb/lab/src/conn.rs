//! A TCP connection that makes request after request, so that a test can see whether an event breaks it.

use std::{
    io::{BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Reply, client::parse_reply, http};

/// An open connection to a VIP. Made by [`Client::connect`](crate::Client::connect); usable from any thread.
#[derive(Debug)]
pub struct Conn {
    stream: BufReader<TcpStream>,
    local: SocketAddr,
    vip: SocketAddr,
}

impl Conn {
    pub(crate) fn new(stream: TcpStream, vip: SocketAddr) -> Result<Self> {
        Ok(Self {
            local: stream.local_addr()?,
            stream: BufReader::new(stream),
            vip,
        })
    }

    /// The client's address and port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// `GET /`.
    ///
    /// # Errors
    ///
    /// When the connection is reset, closed, or silent for longer than the client's timeout: it is broken then.
    pub fn get(&mut self) -> Result<Reply> {
        self.request("GET / HTTP/1.1\r\nHost: vip\r\n\r\n", 0)
    }

    /// As [`Conn::get`], asking the server to close afterwards (so that TIME_WAIT is its, not the client's).
    pub(crate) fn get_and_close(mut self) -> Result<Reply> {
        let reply = self.request("GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n", 0)?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).context("waiting for the end")?;
        Ok(reply)
    }

    /// Receives `length` bytes of body.
    ///
    /// # Errors
    ///
    /// As [`Conn::get`].
    pub fn download(&mut self, length: u64) -> Result<()> {
        self.exchange(&format!("GET /bytes/{length} HTTP/1.1\r\nHost: vip\r\n\r\n"), 0)
            .and_then(|received| {
                ensure!(
                    received == length,
                    "asked for {length} bytes, the answer has {received}"
                );
                Ok(http::skip(&mut self.stream, length)?)
            })
            .with_context(|| self.describe())
    }

    /// Sends `length` bytes of body.
    ///
    /// # Errors
    ///
    /// As [`Conn::get`].
    pub fn upload(&mut self, length: u64) -> Result<Reply> {
        let head = format!("POST / HTTP/1.1\r\nHost: vip\r\nContent-Length: {length}\r\n\r\n");
        self.request(&head, length)
    }

    fn request(&mut self, head: &str, body_length: u64) -> Result<Reply> {
        self.exchange(head, body_length)
            .and_then(|length| {
                ensure!(length <= 65536, "an answer of {length} bytes");
                let mut body = vec![0; usize::try_from(length)?];
                self.stream.read_exact(&mut body).context("reading the answer")?;
                parse_reply(&body, self.local)
            })
            .with_context(|| self.describe())
    }

    /// Sends a request, reads the answer's head and returns its body's length.
    fn exchange(&mut self, head: &str, body_length: u64) -> Result<u64> {
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).context("sending the request")?;
        http::fill(stream, body_length).context("sending the body")?;
        let answer = http::read_head(&mut self.stream)
            .context("waiting for the answer")?
            .context("closed by the server")?;
        ensure!(answer.first_line.contains(" 200 "), "answer: {}", answer.first_line);
        Ok(answer.content_length)
    }

    fn describe(&self) -> String {
        format!("{} -> {}", self.local, self.vip)
    }
}
