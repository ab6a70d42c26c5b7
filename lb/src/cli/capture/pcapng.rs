//! pcapng, as much of it as a capture needs: draft-ietf-opsawg-pcapng (PCAP Next Generation Capture File Format).
//!
//! Never reads a file, and never writes half a block: each goes out in one piece, so that a file is good wherever it ends. Written
//! here because the crates that write pcapng are unfinished: `pcap-file` 2.0 scales time stamps wrong, and its 3.0 has been a
//! release candidate since 2024.

use std::io;

/// Block types (sections 4.1, 4.2 and 4.3).
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// Tells readers our byte order (4.1).
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Length of a section that nobody knows yet (4.1).
const UNKNOWN_LENGTH: u64 = u64::MAX;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// Options (3.5, 4.1, 4.2 and 4.3).
const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_QUEUE: u16 = 6;
/// Time stamps are 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Which way a packet went (4.3.1, the lowest bits of `epb_flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into the interface.
    Inbound,
    /// Out of it.
    Outbound,
}

/// A packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Nanoseconds since 1970 (UTC).
    pub(super) time_ns: u64,
    /// Which way it went.
    pub(super) direction: Direction,
    /// Receive queue.
    pub(super) queue: u32,
    /// Length on the wire in bytes.
    pub(super) len: u32,
    /// As much of it as there is.
    pub(super) data: &'a [u8],
    /// For people.
    pub(super) comment: &'a str,
}

/// Writes one section to `out`, block by block.
pub(super) struct Writer<W> {
    out: W,
    snaplen: u32,
    interfaces: Vec<String>,
}

impl<W: io::Write> Writer<W> {
    /// Begins a file: who wrote it, and the interfaces.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub(super) fn new(out: W, application: &str, interfaces: &[String], snaplen: u32) -> io::Result<Self> {
        let mut writer = Self {
            out,
            snaplen,
            interfaces: Vec::new(),
        };
        let mut block = Block::new(SECTION_HEADER);
        block.u32(BYTE_ORDER_MAGIC).u16(1).u16(0).u64(UNKNOWN_LENGTH);
        block.option(SHB_USERAPPL, application.as_bytes());
        writer.out.write_all(&block.end())?;
        for name in interfaces {
            writer.interface(name)?;
        }
        Ok(writer)
    }

    /// Writes a packet that came in by `interface`.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub(super) fn packet(&mut self, interface: &str, packet: &Packet<'_>) -> io::Result<()> {
        let id = self.interface(interface)?;
        let captured = u32::try_from(packet.data.len()).unwrap_or(u32::MAX);
        let mut block = Block::new(ENHANCED_PACKET);
        block.u32(id);
        // The upper half comes first, whatever the byte order (4.3).
        block.u32((packet.time_ns >> 32) as u32).u32(packet.time_ns as u32);
        block.u32(captured).u32(packet.len.max(captured));
        block.padded(packet.data);
        block.option(OPT_COMMENT, packet.comment.as_bytes());
        let direction: u32 = match packet.direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        block.option(EPB_FLAGS, &direction.to_le_bytes());
        block.option(EPB_QUEUE, &packet.queue.to_le_bytes());
        self.out.write_all(&block.end())
    }

    /// Writes out what is held back.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Number of an interface, which is described first if it is new.
    fn interface(&mut self, name: &str) -> io::Result<u32> {
        let known = self.interfaces.iter().position(|known| known == name);
        let id = known.unwrap_or(self.interfaces.len());
        if known.is_none() {
            let mut block = Block::new(INTERFACE_DESCRIPTION);
            block.u16(ETHERNET).u16(0).u32(self.snaplen);
            block
                .option(IF_NAME, name.as_bytes())
                .option(IF_TSRESOL, &[NANOSECONDS]);
            self.out.write_all(&block.end())?;
            self.interfaces.push(name.to_owned());
        }
        Ok(u32::try_from(id).unwrap_or(u32::MAX))
    }
}

/// A block under construction (3.1), in little-endian order; its length is filled in at the end.
struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        Self(bytes)
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Bytes, filled up to 32 bits.
    fn padded(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// An option (3.5); one that is too long for its length field is cut.
    fn option(&mut self, code: u16, value: &[u8]) -> &mut Self {
        let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
        self.u16(code).u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.padded(value)
    }

    /// The block with its end of options and both its lengths.
    fn end(mut self) -> Vec<u8> {
        self.u16(OPT_END).u16(0);
        let length = u32::try_from(self.0.len().saturating_add(4)).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(4..8) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.u32(length);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, Packet, Writer};

    /// Blocks by type, with their bodies; asserts what holds for all blocks.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = word(file, 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(
                word(file, length - 4) as usize,
                length,
                "the length stands at both ends"
            );
            blocks.push((word(file, 0), file[8..length - 4].to_vec()));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn a_file_is_a_section_with_interfaces_and_packets() {
        let mut writer = Writer::new(Vec::new(), "vipline", &["eth0".to_owned()], 96).unwrap();
        let packet = Packet {
            time_ns: 0x1122_3344_5566_7788,
            direction: Direction::Outbound,
            queue: 3,
            len: 1500,
            data: &[1, 2, 3, 4, 5],
            comment: "verdict=forward",
        };
        writer.packet("eth0", &packet).unwrap();
        writer.packet("eth1", &packet).unwrap();
        writer.packet("eth1", &packet).unwrap();
        let blocks = blocks(&writer.out);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            [0x0a0d_0d0a, 1, 6, 1, 6, 6],
            "an interface is described before its first packet"
        );

        let section = [
            &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0][..],
            &[0xff; 8],
            &[4, 0, 7, 0],
            b"vipline\0",
            &[0; 4],
        ];
        assert_eq!(blocks[0].1, section.concat());
        let interface = [
            &[1, 0, 0, 0, 96, 0, 0, 0, 2, 0, 4, 0][..],
            b"eth0",
            &[9, 0, 1, 0, 9, 0, 0, 0],
            &[0; 4],
        ];
        assert_eq!(blocks[1].1, interface.concat());
        let enhanced = [
            &[0, 0, 0, 0][..],
            &[0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55],
            &[5, 0, 0, 0, 0xdc, 5, 0, 0],
            &[1, 2, 3, 4, 5, 0, 0, 0],
            &[1, 0, 15, 0],
            b"verdict=forward\0",
            &[2, 0, 4, 0, 2, 0, 0, 0],
            &[6, 0, 4, 0, 3, 0, 0, 0],
            &[0; 4],
        ];
        assert_eq!(blocks[2].1, enhanced.concat());
        assert_eq!(blocks[4].1[0], 1, "the second interface");
    }

    #[test]
    fn a_comment_that_is_too_long_is_cut_and_a_packet_is_never_shorter_than_what_there_is_of_it() {
        let mut writer = Writer::new(Vec::new(), "", &[], 96).unwrap();
        let packet = Packet {
            time_ns: 0,
            direction: Direction::Inbound,
            queue: 0,
            len: 1,
            data: &[7; 8],
            comment: &"x".repeat(100_000),
        };
        writer.packet("eth0", &packet).unwrap();
        let blocks = blocks(&writer.out);
        assert_eq!(blocks[2].1[12..20], [8, 0, 0, 0, 8, 0, 0, 0]);
        assert!(blocks[2].1.len() < 66_000);
    }
}
