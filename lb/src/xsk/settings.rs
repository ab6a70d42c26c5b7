//! How the slow path is set up, and what that costs. Never read from a file here: the daemon fills it in.

use lb_core::config::XskMode;

use super::XskError;

/// Descriptors taken from a ring at a time, and the most packets that a handler sees at a time.
pub const BATCH: usize = 64;
/// Most descriptors of one packet: a linear part and the fragments of a socket buffer (MAX_SKB_FRAGS).
pub const MAX_DESCRIPTORS: usize = 18;
/// Packets that wait in a worker's inbox for being sent: 64 B each, so 32 KiB beside the frames that they lie in.
pub const INBOX_PACKETS: usize = 512;
/// Events on their way to the control side: 8 B each.
pub const EVENTS: usize = 4096;
/// What the kernel keeps free in front of a packet (XDP_PACKET_HEADROOM): the metadata is its end.
pub const PACKET_HEADROOM: usize = 256;
/// Bytes of rings per frame of a queue, with the fill, receive, send and completion ring: (8 + 16 + 16) / 2 + 8.
const RING_BYTES_PER_FRAME: u64 = 28;

/// Fewest and most frames of a queue. 128 MiB at 4,096 bytes each for the most, beside 896 KiB of rings.
const FRAMES_PER_QUEUE: std::ops::RangeInclusive<u32> = 128..=32_768;

/// The worker's own CPU polls the driver instead of being interrupted (SO_PREFER_BUSY_POLL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long one look may take (SO_BUSY_POLL).
    pub duration_us: u32,
    /// Most packets of one look (SO_BUSY_POLL_BUDGET).
    pub budget_packets: u16,
}

/// How workers and their sockets are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XskSettings {
    /// Frames of each queue, a power of two from 128 to 32,768. Half of them are for receiving: so many packets of a burst wait
    /// while the worker is busy. The other half is for sending.
    pub frames_per_queue: u32,
    /// Bytes of a frame, 2,048 or 4,096, of which 256 are headroom. Longer packets take several.
    pub frame_bytes: u32,
    /// Copy or zero-copy.
    pub mode: XskMode,
    /// Busy polling; off by default, since the slow path is idle most of the time.
    pub busy_poll: Option<BusyPoll>,
    /// CPUs to pin workers to, in turn; empty: the scheduler decides.
    pub cpus: Vec<u32>,
    /// Niceness of workers. Above 0, because the fast path runs in softirqs, and under a flood those in `ksoftirqd`, at 0: the
    /// scheduler shall prefer it to us.
    pub nice: i32,
}

impl Default for XskSettings {
    fn default() -> Self {
        Self {
            frames_per_queue: 2048,
            frame_bytes: 4096,
            mode: XskMode::Copy,
            busy_poll: None,
            cpus: Vec::new(),
            nice: 5,
        }
    }
}

impl XskSettings {
    /// Memory of frames, rings and inboxes for so many queues.
    pub fn memory_bytes(&self, queues: u32) -> u64 {
        let frames = u64::from(self.frames_per_queue) * (u64::from(self.frame_bytes) + RING_BYTES_PER_FRAME);
        let inbox = (INBOX_PACKETS * size_of::<super::area::Filled>()) as u64;
        u64::from(queues) * (frames + inbox)
    }

    /// # Errors
    ///
    /// [`XskError::Setting`].
    pub fn check(&self) -> Result<(), XskError> {
        let frames = self.frames_per_queue;
        if !frames.is_power_of_two() || !FRAMES_PER_QUEUE.contains(&frames) {
            return Err(XskError::Setting {
                setting: "frames per queue",
                value: frames.into(),
                wanted: "a power of two from 128 to 32768",
            });
        }
        if self.frame_bytes != 2048 && self.frame_bytes != 4096 {
            return Err(XskError::Setting {
                setting: "frame bytes",
                value: self.frame_bytes.into(),
                wanted: "2048 or 4096",
            });
        }
        Ok(())
    }

    /// Frames of a queue that the kernel may have for receiving; as many may be on their way out.
    pub(super) const fn half(&self) -> u32 {
        self.frames_per_queue / 2
    }
}

#[cfg(test)]
mod tests {
    use super::XskSettings;

    #[test]
    fn the_default_costs_eight_megabytes_a_queue() {
        let settings = XskSettings::default();
        settings.check().unwrap();
        let mebibytes = settings.memory_bytes(4) as f64 / f64::from(1 << 20);
        assert!((32.0..33.0).contains(&mebibytes), "{mebibytes} MiB");
    }

    #[test]
    fn settings_out_of_bounds_are_refused() {
        for (frames_per_queue, frame_bytes) in [(0, 4096), (64, 4096), (100, 4096), (65_536, 4096), (2048, 1024)] {
            let settings = XskSettings {
                frames_per_queue,
                frame_bytes,
                ..XskSettings::default()
            };
            assert!(settings.check().is_err(), "{frames_per_queue} frames of {frame_bytes}");
        }
    }
}
