//! What the slow path must know of an interface. Never changes one, and looks only into the calling thread's network namespace:
//! everything comes by ioctl on a socket, because sysfs shows the namespace that it was mounted in.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::XskError;

/// An interface whose queues get workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskInterface {
    /// Its name.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Receive queues: each gets a socket and a worker.
    pub rx_queues: u32,
    /// Transmit queues: workers of receive queues beyond them send by another's.
    pub tx_queues: u32,
}

impl XskInterface {
    /// Asks the kernel. A driver that does not say how many queues it has, has one of each.
    ///
    /// # Errors
    ///
    /// [`XskError::Interface`]: there is no such interface, or it has no Ethernet address.
    pub fn find(name: &str) -> Result<Self, XskError> {
        let failed = |call: &'static str| {
            move |source: io::Error| XskError::Interface {
                interface: name.to_owned(),
                call,
                source,
            }
        };
        let index = nix::net::if_::if_nametoindex(name).map_err(|errno| failed("if_nametoindex")(errno.into()))?;
        let socket = to_ask().map_err(failed("socket"))?;
        let mac = hardware_address(&socket, name).map_err(failed("SIOCGIFHWADDR"))?;
        let (rx_queues, tx_queues) = match channels(&socket, name) {
            Ok(queues) => queues,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => (1, 1),
            Err(error) => return Err(failed("ETHTOOL_GCHANNELS")(error)),
        };
        Ok(Self {
            name: name.to_owned(),
            index,
            mac,
            rx_queues,
            tx_queues,
        })
    }

    /// Its hardware address as it is now: it may change while the interface is up.
    pub(super) fn mac_now(&self) -> io::Result<[u8; 6]> {
        hardware_address(&to_ask()?, &self.name)
    }

    /// Whether it is there: the same, and not another of its name.
    pub(super) fn is_there(&self) -> bool {
        nix::net::if_::if_nametoindex(self.name.as_str()) == Ok(self.index)
    }
}

/// Any socket does for asking.
fn to_ask() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// `ifreq` with this name and nothing else.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an `ifreq` is integers, arrays of them and unions of those: all zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn hardware_address(socket: &OwnedFd, name: &str) -> io::Result<[u8; 6]> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFHWADDR reads the name and writes a sockaddr into the same `ifreq`, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is the member that it wrote.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not an Ethernet interface"));
    }
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}

/// `struct ethtool_channels` (include/uapi/linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Receive and transmit queues in use. A combined channel is one of each.
fn channels(socket: &OwnedFd, name: &str) -> io::Result<(u32, u32)> {
    let mut channels = Channels {
        command: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL with this command writes one `ethtool_channels` where the request points; both live through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let used = |own: u32| own.saturating_add(channels.combined).max(1);
    Ok((used(channels.rx), used(channels.tx)))
}

#[cfg(test)]
mod tests {
    use super::{XskError, XskInterface, request};

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = XskInterface::find("nosuch0").unwrap_err();
        assert!(matches!(&error, XskError::Interface { interface, .. } if interface == "nosuch0"));
        assert!(error.to_string().starts_with("nosuch0: if_nametoindex: "), "{error}");
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(request("fifteen-bytes-x").is_ok());
        assert!(request("sixteen-bytes-xx").is_err());
    }

    #[test]
    fn loopback_is_no_ethernet() {
        let error = XskInterface::find("lo").unwrap_err();
        assert!(
            matches!(
                error,
                XskError::Interface {
                    call: "SIOCGIFHWADDR",
                    ..
                }
            ),
            "{error}"
        );
    }
}
