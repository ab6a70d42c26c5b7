//! `vipline capture`: sampled packets as lines, as JSON or as a pcapng file. Never filters: what the daemon sends is written.

mod pcapng;
mod show;
mod stop;

use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal as _, Seek as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use xdp_prog::verdict::{Fate, Verdict};

use super::{
    EXIT_UNUSABLE,
    args::{CaptureArgs, Format},
};
use crate::control::{self, CaptureEnd, CaptureEvent, CaptureOptions, CaptureStarted, Request, SampleView};
use pcapng::Writer;
use stop::Stop;

/// Bytes of packets that are held back while more are at hand.
const BUFFER: usize = 256 * 1024;

pub(super) fn run(args: CaptureArgs) -> anyhow::Result<ExitCode> {
    let options = match options(&args) {
        Ok(options) => options,
        Err(why) => return unusable(why),
    };
    let to_stdout = args.write.as_deref() == Some(Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        return unusable("a terminal cannot show a pcapng file: redirect it, or leave `-w` away");
    }
    // Opened before anything is asked: a path that cannot be written to must not cost a change of the program.
    let target = match &args.write {
        Some(path) if !to_stdout => Some(Target::open(path)?),
        Some(_) | None => None,
    };
    let stop = Stop::on_signals()?;
    let asked = control::follow::<CaptureStarted>(&args.socket, &Request::Capture { options });
    let (started, mut stream) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            if let Some(target) = target {
                target.discard();
            }
            return Err(error.into());
        }
    };
    stop.with(stream.stopper()?);
    if target.is_none() {
        stop.on_closed_output()?;
    }
    let mut sink = match (target, to_stdout, args.output) {
        (Some(target), ..) => Sink::file(target.begin()?, &started)?,
        (None, true, _) => Sink::file(io::stdout(), &started)?,
        (None, false, Format::Json) => Sink::Json(lines()),
        (None, false, Format::Table) => Sink::Lines(lines()),
    };
    let mut written = 0;
    let result = loop {
        match stream.next_line()? {
            Some(CaptureEvent::Sample(sample)) => {
                let said = sink.write(&sample).and_then(|()| {
                    written += 1;
                    if stream.has_more() { Ok(()) } else { sink.flush() }
                });
                if let Err(error) = said {
                    break Err(error);
                }
            }
            Some(CaptureEvent::End(end)) => break Ok(Some(end)),
            None => break Ok(None),
        }
    };
    match result.and_then(|end| sink.flush().map(|()| end)) {
        Ok(end) => said(written, end, args.write.as_deref()),
        Err(error) => Err(error.into()),
    }
}

fn unusable(why: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "vipline: {why}")?;
    Ok(ExitCode::from(EXIT_UNUSABLE))
}

/// What to ask the daemon for.
fn options(args: &CaptureArgs) -> Result<CaptureOptions, &'static str> {
    let fits = |verdict: &&Verdict| {
        let by_fate = args.verdict.is_empty() || args.verdict.iter().any(|fate| Fate::from(*fate) == verdict.fate());
        let by_reason = args.reason.is_empty() || args.reason.iter().any(|reason| reason == verdict.reason());
        by_fate && by_reason
    };
    let chosen: Vec<_> = Verdict::ALL.iter().filter(fits).collect();
    if chosen.is_empty() {
        return Err("no reason of `--reason` belongs to a verdict of `--verdict`: nothing would be captured");
    }
    let all = chosen.len() == Verdict::ALL.len();
    let reasons = chosen
        .into_iter()
        .filter(|_| !all)
        .map(|verdict| verdict.reason().to_owned());
    Ok(CaptureOptions {
        reasons: reasons.collect(),
        vip: args.vip,
        count: args.count,
        one_in: args.sample,
        snaplen: args.snaplen,
        rate: args.rate,
    })
}

/// Says how it ended.
fn said(written: u64, end: Option<CaptureEnd>, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let end = end.context("the daemon went away; what had come until then is written")?;
    let packets = if written == 1 { "packet" } else { "packets" };
    let mut text = format!("{written} {packets} captured");
    if end.lost > 0 {
        text += &format!(", {} LOST: samples came faster than they were taken", end.lost);
    }
    if file.is_some() || end.lost > 0 || io::stderr().is_terminal() {
        // A closed standard error is no reason to fail.
        drop(writeln!(io::stderr(), "{text}"));
    }
    match end.error {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => anyhow::bail!("the daemon ended the capture: {why}"),
    }
}

/// A file that will be written to. Until then it keeps what it has.
struct Target {
    path: PathBuf,
    file: File,
    is_new: bool,
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let new = File::options().write(true).create_new(true).open(path);
        let is_new = new.is_ok();
        let file = match new {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => File::options().write(true).open(path),
            other => other,
        };
        Ok(Self {
            path: path.to_owned(),
            file: file.with_context(|| format!("cannot write to {}", path.display()))?,
            is_new,
        })
    }

    /// There is something to write.
    fn begin(mut self) -> anyhow::Result<File> {
        // What cannot be cut is a pipe or a device, and needs not be.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
            self.file.rewind()?;
        }
        Ok(self.file)
    }

    /// There is nothing to write: the place looks as before.
    fn discard(self) {
        if self.is_new {
            // Best effort: an empty file does no harm.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Where samples go.
enum Sink {
    File(Writer<BufWriter<Box<dyn Write>>>),
    Json(BufWriter<Box<dyn Write>>),
    Lines(BufWriter<Box<dyn Write>>),
}

fn lines() -> BufWriter<Box<dyn Write>> {
    BufWriter::with_capacity(BUFFER, Box::new(io::stdout()))
}

impl Sink {
    fn file(out: impl Write + 'static, started: &CaptureStarted) -> io::Result<Self> {
        // A buffer passes whole blocks on, never parts of one.
        let out = BufWriter::with_capacity(BUFFER, Box::new(out) as Box<dyn Write>);
        let application = concat!("vipline ", env!("CARGO_PKG_VERSION"));
        let mut writer = Writer::new(out, application, &started.interfaces, started.snaplen)?;
        // Readers of a pipe wait for it.
        writer.flush()?;
        Ok(Self::File(writer))
    }

    fn write(&mut self, sample: &SampleView) -> io::Result<()> {
        match self {
            Self::File(writer) => show::packet(writer, sample),
            Self::Json(out) => {
                serde_json::to_writer(&mut *out, sample)?;
                writeln!(out)
            }
            Self::Lines(out) => writeln!(out, "{}", show::line(sample)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(writer) => writer.flush(),
            Self::Json(out) | Self::Lines(out) => out.flush(),
        }
    }
}
