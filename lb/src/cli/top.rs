//! `vipline top`: rates between two looks at the counters.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    thread,
    time::Instant,
};

use serde::Serialize;

use super::{
    args::{Format, TopArgs},
    output::{bytes, number, table},
};
use crate::control::{self, BackendView, CounterView, Request, VipView};

/// Clears the screen and goes to its first place (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Counter values by name: packets and bytes.
type Totals = BTreeMap<String, (u64, u64)>;

struct Look {
    at: Instant,
    vips: Totals,
    backends: Totals,
    verdicts: Totals,
}

/// A row of rates.
#[derive(Debug, Serialize)]
struct Rate {
    name: String,
    packets_per_second: f64,
    bytes_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Rates {
    seconds: f64,
    vips: Vec<Rate>,
    backends: Vec<Rate>,
    verdicts: Vec<Rate>,
}

pub(super) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let mut before = look(args)?;
    let mut looks = 0;
    while args.count.is_none_or(|count| looks < count) {
        thread::sleep(args.interval);
        let now = look(args)?;
        let rates = Rates {
            seconds: (now.at - before.at).as_secs_f64(),
            vips: rates(&before.vips, &now.vips, now.at - before.at, args.rows),
            backends: rates(&before.backends, &now.backends, now.at - before.at, args.rows),
            verdicts: rates(&before.verdicts, &now.verdicts, now.at - before.at, args.rows),
        };
        let mut out = io::stdout().lock();
        match args.ask.output {
            Format::Json => {
                serde_json::to_writer(&mut out, &rates)?;
                writeln!(out)?;
            }
            Format::Table => {
                if out.is_terminal() {
                    write!(out, "{CLEAR}")?;
                }
                print(&mut out, &rates)?;
            }
        }
        out.flush()?;
        before = now;
        looks += 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn look(args: &TopArgs) -> anyhow::Result<Look> {
    let socket = &args.ask.socket;
    let vips: Vec<VipView> = control::ask(socket, &Request::Vips)?;
    let backends: Vec<BackendView> = control::ask(socket, &Request::Backends)?;
    let verdicts: Vec<CounterView> = control::ask(socket, &Request::Counters)?;
    let name = |vip: &VipView| format!("{} {}", vip.protocol, std::net::SocketAddr::new(vip.address, vip.port));
    Ok(Look {
        at: Instant::now(),
        vips: vips.iter().map(|vip| (name(vip), (vip.packets, vip.bytes))).collect(),
        backends: backends
            .into_iter()
            .map(|backend| (backend.name, (backend.packets, backend.bytes)))
            .collect(),
        verdicts: verdicts
            .into_iter()
            .map(|verdict| (format!("{} {}", verdict.fate, verdict.reason), (verdict.packets, 0)))
            .collect(),
    })
}

/// Rates of what moved, the busiest first.
fn rates(before: &Totals, now: &Totals, elapsed: std::time::Duration, most: usize) -> Vec<Rate> {
    let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
    let mut rates: Vec<Rate> = now
        .iter()
        .filter_map(|(name, (packets, bytes))| {
            // What is new, or was set back because its place was used again, counts from zero.
            let (old_packets, old_bytes) = before.get(name).copied().unwrap_or_default();
            let packets = packets.checked_sub(old_packets).unwrap_or(*packets);
            let bytes = bytes.checked_sub(old_bytes).unwrap_or(*bytes);
            (packets > 0).then(|| Rate {
                name: name.clone(),
                packets_per_second: packets as f64 / seconds,
                bytes_per_second: bytes as f64 / seconds,
            })
        })
        .collect();
    rates.sort_by(|a, b| b.packets_per_second.total_cmp(&a.packets_per_second));
    rates.truncate(most);
    rates
}

fn print(out: &mut dyn io::Write, rates: &Rates) -> io::Result<()> {
    let row = |rate: &Rate| {
        vec![
            rate.name.clone(),
            number(rate.packets_per_second),
            if rate.bytes_per_second > 0.0 {
                bytes(rate.bytes_per_second)
            } else {
                "-".to_owned()
            },
        ]
    };
    for (heading, list) in [
        ("VIP", &rates.vips),
        ("BACKEND", &rates.backends),
        ("VERDICT", &rates.verdicts),
    ] {
        table(
            out,
            &[heading, ">PACKETS/s", ">BYTES/s"],
            list.iter().map(row).collect(),
        )?;
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Totals, rates};

    #[test]
    fn rates_are_differences_over_time_and_the_busiest_comes_first() {
        let before = Totals::from([("a".into(), (10, 1000)), ("b".into(), (0, 0)), ("idle".into(), (5, 5))]);
        let now = Totals::from([
            ("a".into(), (20, 3000)),
            ("b".into(), (100, 100)),
            ("idle".into(), (5, 5)),
            ("set back".into(), (4, 40)),
        ]);
        let rates = rates(&before, &now, Duration::from_secs(2), 15);
        let seen: Vec<_> = rates
            .iter()
            .map(|r| (r.name.as_str(), r.packets_per_second, r.bytes_per_second))
            .collect();
        assert_eq!(seen, [("b", 50.0, 50.0), ("a", 5.0, 1000.0), ("set back", 2.0, 20.0)]);
    }
}
