//! A real socket of the client whose datagrams a test sends itself, crafted, and whose replies arrive like any other's.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Bed, Datagram};

/// A socket of the client, at a VIP.
pub(crate) struct Caller {
    socket: UdpSocket,
    vip: SocketAddr,
}

impl Caller {
    /// On a port that nobody has.
    pub(crate) fn new(bed: &Bed, vip: SocketAddr) -> Result<Self> {
        let client = bed.topology.client();
        let own: IpAddr = if vip.is_ipv4() {
            client.addr_v4().into()
        } else {
            client.addr_v6().into()
        };
        let socket = client.ns().run(|| {
            let socket = UdpSocket::bind((own, 0))?;
            socket.connect(vip)?;
            Ok(socket)
        })?;
        Ok(Self { socket, vip })
    }

    /// The datagram that it would send, as an IP packet.
    pub(crate) fn datagram(&self, payload: &str) -> Result<Vec<u8>> {
        Ok(Datagram::new(self.socket.local_addr()?, self.vip, payload).ip())
    }

    /// Sends a datagram the ordinary way; who answered.
    pub(crate) fn call(&self, payload: &str) -> Result<String> {
        self.socket.send(payload.as_bytes())?;
        self.answer(payload)?.context("no answer")
    }

    /// Who answered a datagram with this payload, if anybody did within half a second.
    pub(crate) fn answer(&self, payload: &str) -> Result<Option<String>> {
        self.answer_within(payload, Duration::from_millis(500))
    }

    /// As [`Self::answer`], within this time.
    pub(crate) fn answer_within(&self, payload: &str, time: Duration) -> Result<Option<String>> {
        self.socket.set_read_timeout(Some(time))?;
        let mut buffer = vec![0; 65536];
        loop {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                return Ok(None);
            };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let (identity, back) = text.split_once('\n').context("not an answer")?;
            if back == payload {
                let identity: serde_json::Value = serde_json::from_str(identity)?;
                return Ok(Some(identity["server"].as_str().context("no server")?.to_owned()));
            }
        }
    }
}
