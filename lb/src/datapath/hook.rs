//! Who is at an interface's XDP hook: one netlink question. Never changes anything.

use std::{
    fmt, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

use super::{DatapathError, attach::Mode, interface::Interface};

// include/uapi/linux/rtnetlink.h, if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_HEADER: usize = 16;
const IFINFOMSG: usize = 16;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A program at an interface's XDP hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The kernel's id of the program.
    pub program_id: u32,
    /// Its name, at most 15 bytes; empty when the kernel does not say.
    pub name: String,
    /// How it is attached.
    pub mode: Mode,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() {
            "without a name"
        } else {
            &self.name
        };
        write!(f, "XDP program {name} (id {}, {} mode)", self.program_id, self.mode)
    }
}

/// The programs at an interface's XDP hook, in the calling thread's network namespace.
///
/// # Errors
///
/// When there is no such interface, or the kernel does not answer.
pub fn holders(interface: &str) -> Result<Vec<Holder>, DatapathError> {
    holders_of(&Interface::find(interface)?)
}

/// Refuses an interface that has an XDP program, as attaching would, and touches nothing.
///
/// # Errors
///
/// [`DatapathError::Occupied`]; and as [`holders`].
pub fn refuse_if_taken(interface: &str) -> Result<(), DatapathError> {
    match holders(interface)?.into_iter().next() {
        None => Ok(()),
        Some(holder) => Err(DatapathError::Occupied {
            interface: interface.to_owned(),
            holder,
        }),
    }
}

pub(crate) fn holders_of(interface: &Interface) -> Result<Vec<Holder>, DatapathError> {
    let query = |call| {
        move |source| DatapathError::Query {
            interface: interface.name.clone(),
            call,
            source,
        }
    };
    let answer = ask(interface.index).map_err(|(call, source)| query(call)(source))?;
    let attributes = link_attributes(&answer).map_err(query("recv"))?;
    Ok(attached(attributes)
        .map(|(program_id, mode)| Holder {
            program_id,
            name: name_of(program_id),
            mode,
        })
        .collect())
}

/// The raw answer to one RTM_GETLINK.
fn ask(ifindex: u32) -> Result<Vec<u8>, (&'static str, io::Error)> {
    let at = |call| move |errno: nix::Error| (call, io::Error::from(errno));
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(at("socket(AF_NETLINK)"))?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(at("connect"))?;
    send(socket.as_raw_fd(), &request(ifindex), MsgFlags::empty()).map_err(at("send"))?;
    // MSG_TRUNC makes a peek return the real length: links have grown past any fixed buffer.
    let length = recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC).map_err(at("recv"))?;
    let mut answer = vec![0; length];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(at("recv"))?;
    answer.truncate(length);
    Ok(answer)
}

/// `nlmsghdr` and `ifinfomsg`.
fn request(ifindex: u32) -> [u8; NLMSG_HEADER + IFINFOMSG] {
    let mut message = [0; NLMSG_HEADER + IFINFOMSG];
    message[0..4].copy_from_slice(&((NLMSG_HEADER + IFINFOMSG) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    message
}

/// The attributes of an RTM_NEWLINK, or the error that came instead.
fn link_attributes(answer: &[u8]) -> io::Result<&[u8]> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let body = answer.get(NLMSG_HEADER..).ok_or_else(short)?;
    match u16::from_ne_bytes([answer[4], answer[5]]) {
        RTM_NEWLINK => body.get(IFINFOMSG..).ok_or_else(short),
        NLMSG_ERROR => {
            let errno = body
                .first_chunk()
                .map(|bytes| i32::from_ne_bytes(*bytes))
                .ok_or_else(short)?;
            Err(io::Error::from_raw_os_error(-errno))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Program id and mode of everything in IFLA_XDP.
fn attached(link: &[u8]) -> impl Iterator<Item = (u32, Mode)> + '_ {
    let xdp = attributes(link)
        .find(|(kind, _)| *kind == IFLA_XDP)
        .map_or(&[][..], |(_, nested)| nested);
    attributes(xdp).filter_map(|(kind, value)| {
        let mode = match kind {
            IFLA_XDP_DRV_PROG_ID => Mode::Native,
            IFLA_XDP_SKB_PROG_ID => Mode::Generic,
            IFLA_XDP_HW_PROG_ID => Mode::Offloaded,
            _ => return None,
        };
        value.first_chunk().map(|id| (u32::from_ne_bytes(*id), mode))
    })
}

/// Netlink attributes (type without flags, value) up to the first that contradicts its length.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, t0, t1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & NLA_TYPE_MASK, value))
    })
}

/// The program may be gone by the time we ask, or we may not be allowed to: then it has no name.
fn name_of(program_id: u32) -> String {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == program_id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{IFLA_XDP, Mode, attached, attributes, link_attributes};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn programs_are_found_beside_other_attributes() {
        let nested = [
            attribute(2, &[1]),
            attribute(4, &[7, 0, 0, 0]),
            attribute(5, &7_u32.to_ne_bytes()),
        ]
        .concat();
        let link = [attribute(3, b"eth0\0"), attribute(IFLA_XDP | 0x8000, &nested)].concat();
        assert_eq!(attached(&link).collect::<Vec<_>>(), [(7, Mode::Native)]);
        assert_eq!(attached(&attribute(3, b"eth0\0")).count(), 0);
    }

    #[test]
    fn broken_attributes_end_the_list() {
        for length in 0..=3_u8 {
            assert_eq!(attributes(&[length, 0, 1, 0, 9, 9, 9, 9]).count(), 0, "length {length}");
        }
        assert_eq!(attributes(&[200, 0, 1, 0]).count(), 0);
        assert!(link_attributes(&[0; 12]).is_err());
    }

    #[test]
    fn an_error_is_its_errno() {
        let mut answer = vec![0; 16];
        answer[4] = 2;
        answer.extend((-libc::ENODEV).to_ne_bytes());
        assert_eq!(link_attributes(&answer).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
