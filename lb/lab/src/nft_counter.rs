//! A named counter of nftables, read in microseconds: for who must know between two packets.
//!
//! Never makes one; `nft` does. One request over netlink a reading, as of include/uapi/linux/netfilter/nf_tables.h.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::Netns;

const NEWOBJ: u16 = 10 << 8 | 18;
const GETOBJ: u16 = 10 << 8 | 19;
const NLM_F_REQUEST: u16 = 1;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;
/// Of struct nlmsghdr, and of that and struct nfgenmsg.
const HEADERS: (usize, usize) = (16, 20);

/// Which of the tables of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    Ip = 2,
    Netdev = 5,
}

/// A counter in a namespace.
#[derive(Debug)]
pub(crate) struct NftCounter {
    socket: OwnedFd,
    request: Vec<u8>,
}

impl NftCounter {
    /// One that was made in `ns`.
    pub(crate) fn open(ns: &Netns, family: Family, table: &str, name: &str) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = ns.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkNetFilter,
            )
            .context("socket(NETLINK_NETFILTER)")
        })?;
        let mut request = vec![0; HEADERS.0];
        request.extend([family as u8, 0, 0, 0]);
        put(&mut request, NFTA_OBJ_TABLE, &[table.as_bytes(), &[0]].concat());
        put(&mut request, NFTA_OBJ_NAME, &[name.as_bytes(), &[0]].concat());
        put(&mut request, NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes());
        let length = u32::try_from(request.len())?.to_ne_bytes();
        request[..4].copy_from_slice(&length);
        request[4..6].copy_from_slice(&GETOBJ.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        let counter = Self { socket, request };
        counter
            .packets()
            .with_context(|| format!("counter {name} of table {table} in {}", ns.name()))?;
        Ok(counter)
    }

    /// Packets that it has counted.
    pub(crate) fn packets(&self) -> Result<u64> {
        send(self.socket.as_raw_fd(), &self.request, MsgFlags::empty()).context("send")?;
        let mut answer = [0; 1024];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv")?;
        let answer = &answer[..length];
        let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
        ensure!(kind.map(u16::from_ne_bytes) == Some(NEWOBJ), "no such counter");
        let data = attribute(answer.get(HEADERS.1..).unwrap_or_default(), NFTA_OBJ_DATA);
        let packets = data.and_then(|data| attribute(data, NFTA_COUNTER_PACKETS)?.try_into().ok());
        packets.map(u64::from_be_bytes).context("an answer without packets")
    }
}

fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of an attribute, the flags of its type left out.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let word = |at: usize| Some(u16::from_ne_bytes(attributes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(word(0)?), word(2)? & 0x3fff);
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::{attribute, put};

    #[test]
    fn attributes_are_found_by_their_type_whatever_their_length() {
        let mut message = Vec::new();
        put(&mut message, 1, b"odd");
        put(&mut message, 2, b"");
        put(&mut message, 4 | 1 << 15, b"nested");
        assert_eq!(attribute(&message, 1), Some(&b"odd"[..]));
        assert_eq!(attribute(&message, 2), Some(&b""[..]));
        assert_eq!(attribute(&message, 4), Some(&b"nested"[..]));
        assert_eq!(attribute(&message, 3), None);
        assert_eq!(attribute(&message[..10], 4), None);
    }
}
