//! Reading typed values out of a tree, noting everything that is wrong on the way.
//!
//! Never stops at the first error: a reader that fails has noted why and gives `None`, and its neighbours are read all the same.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
};

use super::{
    errors::{ConfigError, ConfigErrors, MAX_KEPT_ERRORS},
    problem::Problem,
    raw::{self, Key, Node, Position, Value},
    words::{Kind, QUOTED_CHARS, Quoted},
};

/// Errors whose line and column are looked up, each at the cost of reading the file again …
const MAX_PLACED_ERRORS: usize = 32;
/// … as long as all these readings together are no more than this many bytes.
const MAX_PLACING_BYTES: usize = 4 << 20;

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    noted: RefCell<Vec<(Position, ConfigError)>>,
    omitted: Cell<usize>,
}

impl Report {
    /// Notes a problem.
    pub(super) fn note(&self, spot: &Spot, problem: Problem) {
        let mut noted = self.noted.borrow_mut();
        if noted.len() < MAX_KEPT_ERRORS {
            noted.push((
                spot.position,
                ConfigError {
                    path: spot.to_string(),
                    place: None,
                    problem,
                },
            ));
        } else {
            self.omitted.set(self.omitted.get().saturating_add(1));
        }
    }

    /// The value, if nothing was noted.
    pub(super) fn finish<T>(self, yaml: &str, value: Option<T>) -> Result<T, ConfigErrors> {
        let mut noted = self.noted.into_inner();
        match value {
            Some(value) if noted.is_empty() => return Ok(value),
            Some(_) | None => {}
        }
        noted.sort_by_key(|(position, _)| *position);
        let placed = MAX_PLACED_ERRORS.min(MAX_PLACING_BYTES / yaml.len().max(1));
        for (position, error) in noted.iter_mut().take(placed) {
            error.place = raw::locate(yaml, *position);
        }
        Err(ConfigErrors {
            errors: noted.into_iter().map(|(_, error)| error).collect(),
            omitted: self.omitted.get(),
        })
    }
}

/// Where a value stands: for errors that are found later. Displays as its path.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    position: Position,
    step: Option<Rc<Step>>,
}

#[derive(Debug)]
struct Step {
    parent: Option<Rc<Step>>,
    segment: Segment,
}

#[derive(Debug)]
enum Segment {
    Key(Box<str>),
    Index(usize),
}

impl Spot {
    fn below(&self, position: Position, segment: Segment) -> Self {
        Self {
            position,
            step: Some(Rc::new(Step {
                parent: self.step.clone(),
                segment,
            })),
        }
    }

    /// A key that is not there, of the map that is here.
    pub(super) fn absent(&self, key: &str) -> Self {
        self.below(self.position, Segment::Key(key.into()))
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        let mut step = &self.step;
        while let Some(here) = step {
            steps.push(&here.segment);
            step = &here.parent;
        }
        for (depth, segment) in steps.into_iter().rev().enumerate() {
            match segment {
                Segment::Key(key)
                    if key.len() <= QUOTED_CHARS
                        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/".contains(c)) =>
                {
                    write!(f, "{}{key}", if depth == 0 { "" } else { "." })?;
                }
                Segment::Key(key) => write!(f, "{}{}", if depth == 0 { "" } else { "." }, Quoted::new(key))?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A value being read.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    node: &'a Node,
    spot: Spot,
    report: &'a Report,
}

impl<'a> At<'a> {
    /// The document.
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self {
            node,
            spot: Spot {
                position: node.position,
                step: None,
            },
            report,
        }
    }

    pub(super) fn spot(&self) -> &Spot {
        &self.spot
    }

    pub(super) fn kind(&self) -> Kind {
        self.node.kind()
    }

    /// Notes a problem of this value.
    pub(super) fn note(&self, problem: Problem) {
        self.report.note(&self.spot, problem);
    }

    /// Notes a problem of this value, which therefore has no typed form.
    pub(super) fn fail<T>(&self, problem: Problem) -> Option<T> {
        self.note(problem);
        None
    }

    pub(super) fn bool(&self) -> Option<bool> {
        let Value::Bool(value) = self.node.value else {
            return self.wrong_kind(Kind::Bool);
        };
        Some(value)
    }

    /// A whole number of any size.
    pub(super) fn integer(&self) -> Option<i128> {
        let Value::Integer(value) = self.node.value else {
            return self.wrong_kind(Kind::Integer);
        };
        Some(value)
    }

    /// A whole number within bounds.
    pub(super) fn within<T: Into<u64> + TryFrom<i128> + Copy + PartialOrd>(&self, least: T, most: T) -> Option<T> {
        let value = self.integer()?;
        match T::try_from(value) {
            Ok(number) if least <= number && number <= most => Some(number),
            Ok(_) | Err(_) => self.fail(Problem::NotInRange {
                value,
                least: least.into(),
                most: most.into(),
            }),
        }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let Value::Text(value) = &self.node.value else {
            return self.wrong_kind(Kind::Text);
        };
        Some(value)
    }

    pub(super) fn list(&self) -> Option<Vec<Self>> {
        let Value::List(items) = &self.node.value else {
            return self.wrong_kind(Kind::List);
        };
        let item = |(index, node): (usize, &'a Node)| Self {
            node,
            spot: self.spot.below(node.position, Segment::Index(index)),
            report: self.report,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A map whose keys are its user's names, in the order of the file, without duplicates.
    pub(super) fn entries(&self) -> Option<Vec<(&'a Key, Self)>> {
        let Value::Map(map) = &self.node.value else {
            return self.wrong_kind(Kind::Map);
        };
        let mut names = BTreeSet::new();
        let mut entries = Vec::with_capacity(map.len());
        for (key, node) in map {
            if names.insert(key.name.as_str()) {
                let spot = self.spot_of(key, node.position);
                entries.push((
                    key,
                    Self {
                        node,
                        spot,
                        report: self.report,
                    },
                ));
            } else {
                self.report
                    .note(&self.spot_of(key, key.position), Problem::DuplicateKey);
            }
        }
        Some(entries)
    }

    /// A map whose keys are ours: `read` asks for them, what it did not ask for is unknown.
    pub(super) fn fields<T>(&self, read: impl FnOnce(&mut Fields<'a>) -> Option<T>) -> Option<T> {
        let entries = self.entries()?;
        let entries = entries
            .into_iter()
            .map(|(key, at)| (key.name.as_str(), (key, at)))
            .collect();
        let mut fields = Fields {
            map: self.clone(),
            entries,
            known: Vec::new(),
        };
        let value = read(&mut fields);
        fields.note_unknown();
        value
    }

    fn spot_of(&self, key: &Key, position: Position) -> Spot {
        self.spot.below(position, Segment::Key(key.name.as_str().into()))
    }

    fn wrong_kind<T>(&self, expected: Kind) -> Option<T> {
        match self.node.kind() {
            Kind::Empty => self.fail(Problem::Empty { expected }),
            found @ (Kind::Bool | Kind::Integer | Kind::Float | Kind::Text | Kind::List | Kind::Map | Kind::Tagged) => {
                self.fail(Problem::WrongKind { found, expected })
            }
        }
    }
}

/// The fields of a map being read.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    map: At<'a>,
    entries: BTreeMap<&'a str, (&'a Key, At<'a>)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn optional(&mut self, key: &'static str) -> Option<At<'a>> {
        self.known.push(key);
        self.entries.remove(key).map(|(_, at)| at)
    }

    pub(super) fn required(&mut self, key: &'static str) -> Option<At<'a>> {
        self.optional(key).or_else(|| self.fail_at(key, Problem::Missing))
    }

    /// An optional field: `default` where it is not there, `None` where it is wrong.
    pub(super) fn or<T>(&mut self, key: &'static str, default: T, read: impl FnOnce(At<'a>) -> Option<T>) -> Option<T> {
        self.optional(key).map_or(Some(default), read)
    }

    /// Notes fields that have no place here, because their word comes from the cluster.
    pub(super) fn refuse(&mut self, keys: &[(&'static str, &'static str)]) {
        for (key, from) in keys {
            if let Some((_, at)) = self.entries.remove(key) {
                at.note(Problem::FromCluster { from });
            }
        }
    }

    /// Notes a problem of a field that is not there.
    pub(super) fn fail_at<T>(&self, key: &str, problem: Problem) -> Option<T> {
        self.map.report.note(&self.map.spot.absent(key), problem);
        None
    }

    /// Notes a problem of any value of the file.
    pub(super) fn note(&self, spot: &Spot, problem: Problem) {
        self.map.report.note(spot, problem);
    }

    pub(super) fn spot(&self) -> &Spot {
        &self.map.spot
    }

    fn note_unknown(self) {
        for (name, (key, _)) in &self.entries {
            let nearest = self
                .known
                .iter()
                .copied()
                .filter(|known| alike(known, name))
                .min_by_key(|k| distance(k, name));
            let spot = self.map.spot_of(key, key.position);
            self.map.report.note(
                &spot,
                Problem::UnknownKey {
                    known: self.known.clone(),
                    nearest,
                },
            );
        }
    }
}

/// Whether a name is probably a slip of a known one.
fn alike(known: &str, name: &str) -> bool {
    name.len() <= known.len() + 3 && (distance(known, name) <= 1 + known.len() / 5 || known.eq_ignore_ascii_case(name))
}

/// Levenshtein distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, above) in b.bytes().zip(row.iter_mut().skip(1)) {
            let next = (diagonal + usize::from(x != y)).min(left + 1).min(*above + 1);
            (diagonal, left) = (*above, next);
            *above = next;
        }
    }
    row.last().copied().unwrap_or(0)
}
