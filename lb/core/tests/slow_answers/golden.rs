//! `golden/NAME.frames`: the verdict that a frame comes with, what becomes of it, the frame itself (`>`) and the
//! exact answer (`<`), in hexadecimal; `00*8` is eight of that byte. What follows `#` is for people.

use std::{collections::BTreeMap, fs, path::Path};

use lb_core::slow::Outcome;
use xdp_prog::verdict::Verdict;

use crate::{bed::Bed, frames};

/// One file.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) outcome: Outcome,
    pub(crate) question: Vec<u8>,
    pub(crate) answer: Option<Vec<u8>>,
}

/// All files, by name.
pub(crate) fn all() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slow_answers/golden");
    let files: BTreeMap<_, _> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    files
        .into_iter()
        .map(|(name, path)| read(name, &fs::read_to_string(path).unwrap()))
        .collect()
}

fn read(name: String, text: &str) -> Golden {
    let mut words: BTreeMap<&str, &str> = BTreeMap::new();
    let mut frames: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        match line.trim().split_once(' ') {
            Some((mark @ (">" | "<"), hex)) => frames.entry(mark).or_default().extend(bytes(hex)),
            Some((word, value)) => drop(words.insert(word, value)),
            None => assert!(line.trim().is_empty(), "{name}: {line}"),
        }
    }
    let verdict = Verdict::ALL.iter().find(|verdict| verdict.reason() == words["verdict"]);
    let outcome = Outcome::ALL.iter().find(|outcome| outcome.reason() == words["outcome"]);
    Golden {
        verdict: *verdict.unwrap(),
        outcome: *outcome.unwrap(),
        question: frames.remove(">").unwrap(),
        answer: frames.remove("<"),
        name,
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let of = |word: &str| {
        let (byte, times) = word.split_once('*').unwrap_or((word, "1"));
        vec![u8::from_str_radix(byte, 16).unwrap(); times.parse().unwrap()]
    };
    hex.split_whitespace().flat_map(of).collect()
}

#[test]
fn every_question_has_exactly_the_answer_written_down() {
    let mut bed = Bed::new();
    let all = all();
    assert!(all.len() >= 25, "only {} files found", all.len());
    for golden in all {
        let (outcome, answer) = bed.answer(golden.verdict, &golden.question);
        let name = &golden.name;
        assert_eq!(outcome, golden.outcome, "{name}");
        assert_eq!(answer, golden.answer, "{name}");
        if let Some(answer) = answer {
            frames::opened(&answer);
        }
    }
}

#[test]
fn the_program_hands_every_question_over_with_the_verdict_written_down() {
    let bed = Bed::new();
    for golden in all() {
        assert_eq!(bed.verdict(&golden.question), golden.verdict, "{}", golden.name);
    }
}
