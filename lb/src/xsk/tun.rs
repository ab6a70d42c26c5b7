//! A way from the slow path to this node's own kernel: a TUN device that takes IP packets. Never reads from it: what the kernel
//! answers goes its usual way.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    sync::OnceLock,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{XskError, interface::request};

/// Name of the device.
pub const TUN_NAME: &str = "vipline0";

/// The IPv4 dummy address (RFC 7600 4.8): nobody answers to it and nobody sends to it.
const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

const MAC_PAIR: usize = 12;
const ETHERTYPE: usize = 2;
const TAG: usize = 4;

/// A TUN device that is made when the first packet needs it, and not on nodes where none ever does.
#[derive(Debug, Default)]
pub struct ToKernel {
    /// `None` inside: it could not be made, which was said.
    device: OnceLock<Option<Tun>>,
}

impl ToKernel {
    /// As [`Tun::write`].
    pub(super) fn write(&self, frame: &[u8]) -> bool {
        let device = self.device.get_or_init(|| {
            Tun::create(TUN_NAME)
                .inspect_err(|error| tracing::warn!(%error, "unusual packets for this node as a backend are dropped"))
                .ok()
        });
        device.as_ref().is_some_and(|device| device.write(frame))
    }
}

/// A TUN device, up. It goes with this.
#[derive(Debug)]
pub struct Tun {
    device: File,
}

impl Tun {
    /// Makes the device in the calling thread's network namespace, and takes it up.
    ///
    /// Packets come in by it whose sources the routing table would look for elsewhere, so reverse-path filtering is set to loose for
    /// it; the kernel takes the higher value of this and `all`, so strict (1) there does not win. Where `/proc/sys` cannot be
    /// written, as in a service with `ProtectKernelTunables=`, it must not be strict by default. And it gets an IPv4 address,
    /// because loose filtering drops all that comes in by a device without one (net/ipv4/fib_frontend.c, `__fib_validate_source`).
    ///
    /// # Errors
    ///
    /// [`XskError::Interface`].
    pub fn create(name: &str) -> Result<Self, XskError> {
        let failed = |call: &'static str| {
            move |source: io::Error| XskError::Interface {
                interface: name.to_owned(),
                call,
                source,
            }
        };
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed("open /dev/net/tun"))?;
        let mut wanted = request(name).map_err(failed("TUNSETIFF"))?;
        wanted.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut wanted) } != 0 {
            return Err(failed("TUNSETIFF")(io::Error::last_os_error()));
        }
        filter_loosely(name).map_err(failed("set rp_filter to 2"))?;
        // No addresses of its own: it only takes packets in.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| failed("socket")(errno.into()))?;
        set_address(&socket, name).map_err(failed("SIOCSIFADDR"))?;
        up(&socket, name).map_err(failed("SIOCSIFFLAGS"))?;
        Ok(Self { device })
    }

    /// Hands the IP packet of a frame to the kernel. False if it is none, or the kernel does not take it.
    pub(super) fn write(&self, frame: &[u8]) -> bool {
        ip_packet(frame).is_some_and(|packet| {
            (&self.device)
                .write(packet)
                .is_ok_and(|written| written == packet.len())
        })
    }
}

fn filter_loosely(name: &str) -> io::Result<()> {
    const STRICT: u8 = 1;
    let path = |of: &str| format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
    let refused = match fs::write(path(name), "2") {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let read = |of: &str| {
        fs::read_to_string(path(of))
            .ok()
            .and_then(|text| text.trim_end().parse::<u8>().ok())
    };
    match (read("all"), read(name)) {
        (Some(all), Some(own)) if all.max(own) != STRICT => Ok(()),
        (Some(_) | None, Some(_) | None) => Err(refused),
    }
}

/// On a point-to-point device the prefix is 32 bits by itself.
fn set_address(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut wanted = request(name)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(DUMMY_ADDRESS.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain integers, and the kernel reads the one as the other.
    wanted.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    // SAFETY: SIOCSIFADDR reads one `ifreq`, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as libc::Ioctl, &raw mut wanted) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut wanted = request(name)?;
    wanted.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut wanted) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What follows the Ethernet header and its tags, if that is IP.
fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let mut rest = frame.get(MAC_PAIR..)?;
    loop {
        match *rest.first_chunk::<ETHERTYPE>()? {
            [0x81, 0x00] | [0x88, 0xa8] => rest = rest.get(TAG..)?,
            [0x08, 0x00] | [0x86, 0xdd] => return rest.get(ETHERTYPE..),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ip_packet;

    #[test]
    fn the_ip_packet_stands_behind_any_tags() {
        let frame = |middle: &[u8]| [&[0; 12][..], middle, &[0x45, 1, 2]].concat();
        assert_eq!(ip_packet(&frame(&[8, 0])), Some(&[0x45, 1, 2][..]));
        assert_eq!(
            ip_packet(&frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x86, 0xdd])),
            Some(&[0x45, 1, 2][..])
        );
        assert_eq!(ip_packet(&frame(&[8, 6])), None);
        assert_eq!(ip_packet(&[0; 13]), None);
        assert_eq!(ip_packet(&[0x81; 14]), None);
    }
}
