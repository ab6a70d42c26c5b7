//! As much HTTP/1.1 as the lab's servers and clients speak with each other (and with curl): no chunks, no pipelining.

use std::io::{self, BufRead, ErrorKind, Read, Write};

/// Longest header line read, in bytes.
const MAX_LINE: u64 = 8192;

/// The first line and the headers that matter.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    pub(crate) content_length: u64,
    pub(crate) close: bool,
}

/// Reads a message's head; `None` when the peer has closed before it.
pub(crate) fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Head>> {
    let Some(first_line) = read_line(stream)? else {
        return Ok(None);
    };
    let mut head = Head {
        first_line,
        content_length: 0,
        close: false,
    };
    loop {
        let line = read_line(stream)?.ok_or(ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(Some(head));
        }
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if key.eq_ignore_ascii_case("content-length") {
            head.content_length = value.parse().map_err(|_| ErrorKind::InvalidData)?;
        } else if key.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        }
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    if stream.take(MAX_LINE).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Reads and drops exactly `length` bytes.
pub(crate) fn skip(stream: &mut impl Read, length: u64) -> io::Result<()> {
    let read = io::copy(&mut stream.take(length), &mut io::sink())?;
    if read == length {
        Ok(())
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// Writes `length` bytes of filler.
pub(crate) fn fill(stream: &mut impl Write, length: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(b'v').take(length), stream).map(drop)
}
