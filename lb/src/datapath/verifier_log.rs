//! The end of a verifier log, short enough to read. Never shows a log of a load that succeeded.

use std::fmt;

/// Lines kept: enough for the offending instruction, the source line it came from and the path that led there.
const KEPT_LINES: usize = 25;
/// Characters kept of a line: register states can be longer than a screen.
const KEPT_CHARS: usize = 220;

/// The last useful lines of a verifier log. Displays as nothing, or as an indented block that starts with a newline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifierTail {
    lines: Vec<String>,
    left_out: usize,
}

impl VerifierTail {
    /// Shortens a log: without statistics, precision tracking and repeats, the last 25 lines.
    pub fn new(log: &str) -> Self {
        let mut useful: Vec<&str> = log.lines().map(str::trim_end).filter(|line| !is_boring(line)).collect();
        useful.dedup();
        let left_out = useful.len().saturating_sub(KEPT_LINES);
        let lines = useful[left_out..].iter().map(|line| shorten(line)).collect();
        Self { lines, left_out }
    }

    /// Whether there was nothing to show: the kernel refused before its verifier looked.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What the verifier said last: the reason, normally.
    pub fn last_line(&self) -> Option<&str> {
        self.lines.last().map(String::as_str)
    }
}

impl fmt::Display for VerifierTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return Ok(());
        }
        f.write_str("\n  the verifier's last words")?;
        if self.left_out > 0 {
            write!(f, " ({} lines before them left out)", self.left_out)?;
        }
        f.write_str(":")?;
        self.lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Statistics that end every log, and the verifier's notes to itself.
fn is_boring(line: &str) -> bool {
    const BORING: [&str; 6] = [
        "verification time ",
        "stack depth ",
        "processed ",
        "mark_precise: ",
        "propagating ",
        "max_states_per_insn ",
    ];
    line.trim().is_empty() || BORING.iter().any(|start| line.trim_start().starts_with(start))
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(KEPT_CHARS) {
        None => line.to_owned(),
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_CHARS, KEPT_LINES, VerifierTail};

    /// What Linux 6.18 wrote when `vipline_decap` was made to read 9 bytes beyond its bounds check.
    const REAL: &str = "\
0: R1=ctx() R10=fp0
; #[xdp(frags)] @ decap.rs:13
0: (b7) r7 = 4                        ; R7=4
; unsafe { (*self.ctx).data_end as usize } @ xdp.rs:21
1: (61) r2 = *(u32 *)(r1 +4)          ; R1=ctx() R2=pkt_end()
; unsafe { (*self.ctx).data as usize } @ xdp.rs:16
2: (61) r3 = *(u32 *)(r1 +0)          ; R1=ctx() R3=pkt(r=0)
; if start + 14 <= ctx.data_end() { @ decap.rs:16
3: (bf) r4 = r3                       ; R3=pkt(r=0) R4=pkt(r=0)
4: (07) r4 += 14                      ; R4=pkt(off=14,r=0)
5: (2d) if r4 > r2 goto pc+773        ; R2=pkt_end() R4=pkt(off=14,r=14)
6: (b7) r0 = 1                        ; R0=1
; intrinsics::volatile_load(src) @ mod.rs:2091
7: (71) r4 = *(u8 *)(r3 +22)
invalid access to packet, off=22 size=1, R3(id=0,off=22,r=14)
R3 offset is outside of the packet
verification time 232 usec
stack depth 0+0
processed 8 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
";

    #[test]
    fn statistics_go_and_the_reason_is_last() {
        let tail = VerifierTail::new(REAL);
        assert_eq!(tail.last_line(), Some("R3 offset is outside of the packet"));
        let text = tail.to_string();
        assert!(text.contains("; if start + 14 <= ctx.data_end() { @ decap.rs:16") && text.contains("invalid access"));
        assert!(!text.contains("processed") && !text.contains("stack depth") && !text.contains("left out"));
    }

    #[test]
    fn a_long_log_keeps_its_end_and_says_what_was_left_out() {
        let mut log: String = (0..4_000).map(|n| format!("{n}: (b7) r0 = {n}\n")).collect();
        log += REAL;
        let text = VerifierTail::new(&log).to_string();
        assert_eq!(text.lines().filter(|line| line.starts_with("    ")).count(), KEPT_LINES);
        assert!(text.contains("(3991 lines before them left out)"), "{text}");
        assert!(text.ends_with("R3 offset is outside of the packet"));
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let tail = VerifierTail::new(&"é".repeat(1_000));
        assert_eq!(tail.last_line().map(|line| line.chars().count()), Some(KEPT_CHARS + 1));
    }

    #[test]
    fn no_log_shows_nothing() {
        assert_eq!(VerifierTail::new("\n\n").to_string(), "");
    }
}
