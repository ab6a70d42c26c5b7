//! TCP and IP options that neither std, tokio nor nix sets: the MD5 signatures of RFC 2385 and the least TTL of RFC 5082.
//!
//! Never connects, and never keeps a key.

use std::{
    io,
    mem::size_of,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
};

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};

use libc::{c_int, c_void, socklen_t};

/// Longest key (`TCP_MD5SIG_MAXKEYLEN` in include/uapi/linux/tcp.h).
pub const MAX_TCP_MD5_KEY_BYTES: usize = 80;
/// include/uapi/linux/in6.h; IPv4's is in libc.
const IPV6_MINHOPCOUNT: c_int = 73;

/// `struct tcp_md5sig` (include/uapi/linux/tcp.h).
#[repr(C)]
struct TcpMd5Sig {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    ifindex: c_int,
    key: [u8; MAX_TCP_MD5_KEY_BYTES],
}

/// Signs segments to and from a peer on this socket, and drops those that come unsigned; an empty key ends it. On a listening socket,
/// for the connections that it accepts.
///
/// # Errors
///
/// `setsockopt(TCP_MD5SIG)`'s: `EINVAL` for a longer key than [`MAX_TCP_MD5_KEY_BYTES`], `ENOENT` where there was none to end, `EPERM`.
///
/// # Minimum kernel version
///
/// 2.6.20, with `CONFIG_TCP_MD5SIG`.
pub fn set_tcp_md5(socket: impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    if key.len() > MAX_TCP_MD5_KEY_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let storage = SockaddrStorage::from(SocketAddr::new(peer, 0));
    // SAFETY: all of its fields are plain numbers, for which zero is a value.
    let mut option: TcpMd5Sig = unsafe { std::mem::zeroed() };
    let length = (storage.len() as usize).min(size_of::<libc::sockaddr_storage>());
    // SAFETY: `storage` has `length` bytes at least, `option.address` as many, and they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            storage.as_ptr().cast::<u8>(),
            (&raw mut option.address).cast::<u8>(),
            length,
        );
    }
    option.key_length = key.len() as u16;
    option.key[..key.len()].copy_from_slice(key);
    set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &option)
}

/// Drops packets that came over more hops than their sender can have meant: those with a lower TTL, or hop limit, than this.
///
/// # Errors
///
/// `setsockopt(IP_MINTTL)`'s or `setsockopt(IPV6_MINHOPCOUNT)`'s.
pub fn set_least_ttl(socket: impl AsFd, is_v6: bool, ttl: u8) -> io::Result<()> {
    let ttl = c_int::from(ttl);
    if is_v6 {
        set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &ttl)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &ttl)
    }
}

/// Gives packets of this socket a TTL, or hop limit.
///
/// # Errors
///
/// `setsockopt(IP_TTL)`'s or `setsockopt(IPV6_UNICAST_HOPS)`'s.
pub fn set_ttl(socket: impl AsFd, is_v6: bool, ttl: u8) -> io::Result<()> {
    let ttl = c_int::from(ttl);
    if is_v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &ttl)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_TTL, &ttl)
    }
}

fn set<T>(socket: impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and `value` is `size_of::<T>()` bytes that are only read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast::<c_void>(),
            size_of::<T>() as socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_signed_connection_needs_the_same_key_on_both_sides() {
        let peer: IpAddr = [127, 0, 0, 1].into();
        let listener = TcpListener::bind((peer, 0)).unwrap();
        set_tcp_md5(&listener, peer, b"secret").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = |key: &[u8]| {
            let family = nix::sys::socket::AddressFamily::Inet;
            let kind = nix::sys::socket::SockType::Stream;
            let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK;
            let socket = nix::sys::socket::socket(family, kind, flags, None).unwrap();
            set_tcp_md5(&socket, peer, key).unwrap();
            let to = SockaddrStorage::from(address);
            let _ = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to);
            let stream = TcpStream::from(socket);
            std::thread::sleep(std::time::Duration::from_millis(100));
            stream.peer_addr().is_ok()
        };
        assert!(connect(b"secret"));
        assert!(!connect(b"another"));
    }

    #[test]
    fn options_are_taken_on_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let is_v6 = listener.local_addr().unwrap().is_ipv6();
            set_ttl(&listener, is_v6, 255).unwrap();
            set_least_ttl(&listener, is_v6, 255).unwrap();
            let peer = listener.local_addr().unwrap().ip();
            set_tcp_md5(&listener, peer, b"key").unwrap();
            set_tcp_md5(&listener, peer, b"").unwrap();
        }
    }
}
