//! `vipline capture` without root: command lines that cannot be, and what is written of what a daemon tells.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn vipline(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline"));
    command
        .arg("capture")
        .args(args)
        .env_remove("VIPLINE_SOCKET")
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A daemon that says these lines to one client, and what it was asked.
struct Daemon {
    socket: PathBuf,
    asked: Receiver<Value>,
    directory: TempDir,
}

impl Daemon {
    fn new(lines: Vec<Value>) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, asked) = channel();
        thread::spawn(move || {
            let (stream, _): (UnixStream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            sender.send(serde_json::from_str(&line).unwrap()).unwrap();
            for line in lines {
                let _ = writeln!(&stream, "{line}");
            }
        });
        Self {
            socket,
            asked,
            directory,
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = vipline(args);
        command
            .current_dir(self.directory.path())
            .arg("--socket")
            .arg(&self.socket);
        command.output().unwrap()
    }
}

fn started() -> Value {
    json!({ "ok": { "interfaces": ["eth0"], "snaplen": 2048 } })
}

fn sample() -> Value {
    json!({ "sample": {
        "time_ns": 1_700_000_000_123_456_789_u64, "interface": "eth0", "queue": 2, "verdict": "drop", "reason": "martian",
        "vip": "tcp 203.0.113.10:80", "backend": null,
        "flow": { "protocol": "tcp", "source": "127.0.0.1:1", "destination": "203.0.113.10:80", "outer": null },
        "received_len": 60, "len": 60, "data": "00".repeat(60),
    }})
}

fn end(error: Option<&str>, lost: u64) -> Value {
    json!({ "end": { "samples": 2, "lost": lost, "error": error } })
}

#[test]
fn what_cannot_be_asked_is_exit_code_2_and_nobody_is_asked() {
    for (wrong, word) in [
        (&["--vip", "203.0.113.10:80"][..], "tcp://203.0.113.10:80"),
        (&["--vip", "web"], "ADDRESS"),
        (&["--verdict", "maybe"], "forward"),
        (&["--reason", "bored"], "bored"),
        (&["--verdict", "drop", "--reason", "tx"], "nothing would be captured"),
        (&["--count", "0"], "count"),
        (&["--sample", "0"], "1-in-N"),
        (&["--sample", "often"], "1-in-N"),
        (&["--rate", "0"], "1..=1000000"),
        (&["--snaplen", "10"], "64..=16384"),
        (&["--snaplen", "100000"], "64..=16384"),
        (&["-w", "f.pcapng", "-o", "json"], "cannot be used with"),
        (&["-o", "xml"], "xml"),
    ] {
        let mut command = vipline(wrong);
        let output = command.args(["--socket", "/no/such/socket"]).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {error}");
        assert!(error.contains(word), "{wrong:?}: no {word} in:\n{error}");
        assert_eq!(text(&output.stdout), "", "{wrong:?}");
    }
    let help = vipline(&["--help"]).output().unwrap();
    for word in [
        "no code for it",
        "one capture at a time",
        "compared after sampling",
        "tshark",
    ] {
        let help = text(&help.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(word), "no {word} in:\n{help}");
    }
}

#[test]
fn a_terminal_gets_no_file_and_an_unwritable_path_is_known_before_anybody_is_asked() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = vipline(&["-w", "-", "--socket", "/no/such/socket"]);
    let output = command
        .stdout(pty.slave)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("terminal"), "{}", text(&output.stderr));

    let mut command = vipline(&["-w", "/no/such/place/f", "--socket", "/no/such/socket"]);
    let output = command.output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("cannot write to /no/such/place/f") && !error.contains("socket"),
        "{error}"
    );
}

#[test]
fn the_daemon_is_asked_for_what_was_said() {
    let ask = |args: &[&str]| {
        let daemon = Daemon::new(vec![started(), end(None, 0)]);
        let output = daemon.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        let asked = daemon.asked.recv().unwrap();
        assert_eq!(asked["ask"], "capture");
        asked["options"].clone()
    };
    let usual = json!({
        "reasons": [], "vip": null, "count": null, "one_in": 1, "snaplen": 2048, "rate": 1000,
    });
    assert_eq!(ask(&[]), usual);
    assert_eq!(
        ask(&["--verdict", "forward,pass,slow,drop"]),
        usual,
        "all of them are no filter"
    );
    assert_eq!(
        ask(&["--verdict", "forward"])["reasons"],
        json!(["tx", "redirect", "local"])
    );
    assert_eq!(
        ask(&["--verdict", "forward", "--reason", "tx,martian", "--reason", "local"])["reasons"],
        json!(["tx", "local"]),
        "both must fit"
    );
    let options = ask(&[
        "--vip",
        "udp://[2001:db8::1]:53",
        "-n",
        "5",
        "--sample",
        "1-in-100",
        "--snaplen",
        "64",
        "--rate",
        "7",
    ]);
    assert_eq!(
        options,
        json!({
            "reasons": [], "vip": { "vip": { "protocol": "udp", "at": "[2001:db8::1]:53" } }, "count": 5, "one_in": 100,
            "snaplen": 64, "rate": 7,
        })
    );
    assert_eq!(
        ask(&["--vip", "203.0.113.1"])["vip"],
        json!({ "address": "203.0.113.1" })
    );
}

#[test]
fn samples_are_lines_for_people_and_json_for_programs_and_blocks_in_a_file() {
    let lines = || Daemon::new(vec![started(), sample(), sample(), end(None, 0)]);
    let output = lines().run(&[]);
    let line =
        "22:13:20.123456 eth0 drop martian  tcp 127.0.0.1:1 > 203.0.113.10:80  vip tcp://203.0.113.10:80  60 B\n";
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        (line.repeat(2), String::new())
    );
    assert_eq!(output.status.code(), Some(0));

    let output = lines().run(&["-o", "json"]);
    let printed = text(&output.stdout);
    assert_eq!(printed.lines().count(), 2);
    for line in printed.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), sample()["sample"]);
    }

    let output = lines().run(&["-w", "-"]);
    assert_eq!(output.stdout[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    assert_eq!(text(&output.stderr), "2 packets captured\n");
    let daemon = lines();
    fs::write(daemon.directory.path().join("f.pcapng"), "x".repeat(100_000)).unwrap();
    daemon.run(&["-w", "f.pcapng"]);
    let file = fs::read(daemon.directory.path().join("f.pcapng")).unwrap();
    assert_eq!(file, output.stdout, "what was there before is gone");
}

#[test]
fn an_end_against_our_will_is_a_failure_and_what_had_come_is_written() {
    for (last, word) in [
        (Some(end(Some("the client took nothing for 30 s"), 7)), "took nothing"),
        (None, "went away"),
        (Some(json!({ "colour": "blue" })), "another version"),
    ] {
        let daemon = Daemon::new([started(), sample()].into_iter().chain(last).collect());
        let output = daemon.run(&["-w", "f.pcapng"]);
        assert_eq!(output.status.code(), Some(1), "{word}");
        assert!(text(&output.stderr).contains(word), "{word}: {}", text(&output.stderr));
        let file = fs::read(daemon.directory.path().join("f.pcapng")).unwrap();
        assert!(file.len() > 150, "{word}: {} bytes", file.len());
    }
    let output = Daemon::new(vec![started(), sample(), end(None, 7)]).run(&[]);
    assert!(text(&output.stderr).contains("7 LOST"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_signal_before_the_capture_has_begun_ends_it_when_it_has_and_a_second_one_does_not_wait() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let start = || {
        let mut command = vipline(&["-w", "f.pcapng"]);
        command.current_dir(directory.path()).arg("--socket").arg(&socket);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        // It has asked, so it waits for signals.
        reader.read_line(&mut String::new()).unwrap();
        (child, reader)
    };
    let signal = |child: &Child| {
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        // Two at once would be one.
        thread::sleep(Duration::from_millis(300));
    };

    let (mut child, mut reader) = start();
    signal(&child);
    assert_eq!(child.try_wait().unwrap(), None, "it waits for the daemon");
    writeln!(reader.get_ref(), "{}\n{}", started(), sample()).unwrap();
    assert_eq!(reader.read_line(&mut String::new()).unwrap(), 0, "it has enough");
    writeln!(reader.get_ref(), "{}", end(None, 0)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "1 packet captured\n");
    assert_eq!(output.status.code(), Some(0));

    let (mut child, _reader) = start();
    signal(&child);
    signal(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_who_has_enough_ends_it_while_nothing_comes() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = vipline(&[]);
    command
        .arg("--socket")
        .arg(&socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut daemon = BufReader::new(stream);
    daemon.read_line(&mut String::new()).unwrap();
    writeln!(daemon.get_ref(), "{}\n{}", started(), sample()).unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    // The control: somebody reads.
    assert!(daemon.read_line(&mut String::new()).is_err(), "it goes on");
    drop(reader);
    daemon
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(daemon.read_line(&mut String::new()).unwrap(), 0, "it has enough");
    writeln!(daemon.get_ref(), "{}", end(None, 0)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn nobody_who_reads_is_no_failure() {
    for args in [&[][..], &["-o", "json"], &["-w", "-"]] {
        let daemon = Daemon::new([started()].into_iter().chain((0..2000).map(|_| sample())).collect());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let mut command = vipline(args);
        command
            .arg("--socket")
            .arg(&daemon.socket)
            .stdout(writer)
            .stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new()),
            "{args:?}"
        );
    }
}
