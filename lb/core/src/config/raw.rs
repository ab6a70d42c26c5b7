//! A file's text as a tree: YAML and nothing about load balancing.
//!
//! Never trusts the text: its length, depth (128, in `serde_norway`) and what its aliases repeat are bounded. The tree is our own
//! because serde's derived structs stop at the first bad value, and [`serde_norway::Value`] forgets the order and the duplicates
//! of keys; this one keeps a position for every value, so that all errors come at once and in the order of the file.

use std::{cell::Cell, fmt};

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::{
    errors::{ConfigError, ConfigErrors, Place},
    problem::Problem,
    words::Kind,
};

/// Longest file, in bytes: about 100,000 VIPs. While it is read, an ordinary file costs about 40 times its length in memory
/// (10,000 VIPs: 0.7 MB of text, 17 MB, under 0.2 s) and the worst text (nothing but brackets) 160 times.
pub const MAX_CONFIG_BYTES: usize = 8 << 20;
/// What a document may grow to by aliases, as a multiple of its length: enough for any honest use, and a tree that stays small.
const ALIAS_GROWTH: usize = 4;
/// Growth that every document may have, however short.
const ALIAS_ALLOWANCE: usize = 1 << 16;

/// Position of a value: values are counted in the order of the file.
pub(super) type Position = u32;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// A value, in the words of YAML.
#[derive(Debug)]
pub(super) enum Value {
    Empty,
    Bool(bool),
    Integer(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Key, Node)>),
    Tagged,
}

/// A key, as text whatever it was.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) position: Position,
    pub(super) name: String,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match self.value {
            Value::Empty => Kind::Empty,
            Value::Bool(_) => Kind::Bool,
            Value::Integer(_) => Kind::Integer,
            Value::Float => Kind::Float,
            Value::Text(_) => Kind::Text,
            Value::List(_) => Kind::List,
            Value::Map(_) => Kind::Map,
            Value::Tagged => Kind::Tagged,
        }
    }

    fn into_key(self) -> Key {
        let name = match self.value {
            Value::Empty => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::Text(value) => value,
            Value::Float | Value::List(_) | Value::Map(_) | Value::Tagged => "?".to_owned(),
        };
        Key {
            position: self.position,
            name,
        }
    }
}

/// Reads a document.
pub(super) fn parse(yaml: &str) -> Result<Node, ConfigErrors> {
    let wrong = |place, problem| {
        ConfigErrors::one(ConfigError {
            path: String::new(),
            place,
            problem,
        })
    };
    if yaml.len() > MAX_CONFIG_BYTES {
        return Err(wrong(None, Problem::TooLarge { bytes: yaml.len() }));
    }
    let reading = Reading::new(yaml, None);
    let node = reading
        .value()
        .deserialize(serde_norway::Deserializer::from_str(yaml))
        .map_err(|error| {
            if reading.exhausted.get() {
                // Its place would be where the repeated value stands, not the aliases.
                wrong(None, Problem::TooManyAliases)
            } else {
                wrong(
                    place(&error),
                    Problem::Syntax {
                        yaml: without_place(&error.to_string()),
                    },
                )
            }
        })?;
    if node.kind() == Kind::Empty {
        Err(wrong(None, Problem::EmptyFile))
    } else {
        Ok(node)
    }
}

/// Finds a value in the text, by reading again up to it: `serde_norway` tells places only of errors. Costs what reading costs.
pub(super) fn locate(yaml: &str, position: Position) -> Option<Place> {
    let reading = Reading::new(yaml, Some(position));
    let error = reading
        .value()
        .deserialize(serde_norway::Deserializer::from_str(yaml))
        .err()?;
    place(&error)
}

fn place(error: &serde_norway::Error) -> Option<Place> {
    error.location().map(|at| Place {
        line: at.line(),
        column: at.column(),
    })
}

/// The reader's words without its own "at line …": ours stand at the end of every error alike.
fn without_place(words: &str) -> String {
    let mut words = words.to_owned();
    while let Some(at) = words.rfind(" at line ") {
        let after = words[at + 1..].find([',', ';']).map_or(words.len(), |end| at + 1 + end);
        words.replace_range(at..after, "");
    }
    words
}

/// State of one reading.
struct Reading {
    /// Values seen.
    seen: Cell<Position>,
    /// Values and bytes of text that may still come.
    left: Cell<usize>,
    /// There were more.
    exhausted: Cell<bool>,
    /// Stop at this value.
    stop_at: Option<Position>,
}

impl Reading {
    fn new(yaml: &str, stop_at: Option<Position>) -> Self {
        let left = yaml.len() * ALIAS_GROWTH + ALIAS_ALLOWANCE;
        Self {
            seen: Cell::new(0),
            left: Cell::new(left),
            exhausted: Cell::new(false),
            stop_at,
        }
    }

    fn value(&self) -> AnyValue<'_> {
        AnyValue { reading: self }
    }

    fn spend<E: Error>(&self, cost: usize) -> Result<(), E> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.exhausted.set(true);
                Err(E::custom("too many aliases"))
            }
        }
    }
}

#[derive(Clone, Copy)]
struct AnyValue<'a> {
    reading: &'a Reading,
}

impl<'de> DeserializeSeed<'de> for AnyValue<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let position = self.reading.seen.get();
        self.reading.seen.set(position.saturating_add(1));
        let value = deserializer.deserialize_any(AtPosition {
            reading: self.reading,
            position,
        })?;
        Ok(Node { position, value })
    }
}

/// Visits the value at a position.
struct AtPosition<'a> {
    reading: &'a Reading,
    position: Position,
}

impl AtPosition<'_> {
    fn enter<E: Error>(&self, text_bytes: usize) -> Result<(), E> {
        if self.reading.stop_at == Some(self.position) {
            return Err(E::custom("here"));
        }
        self.reading.spend(text_bytes + 1)
    }
}

impl<'de> Visitor<'de> for AtPosition<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.enter(0)?;
        Ok(Value::Empty)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.enter(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.visit_i128(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.visit_i128(value.into())
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Value, E> {
        self.enter(0)?;
        Ok(Value::Integer(value))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Value, E> {
        self.enter(0)?;
        Ok(i128::try_from(value).map_or(Value::Float, Value::Integer))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        self.enter(0)?;
        Ok(Value::Float)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.enter(value.len())?;
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.enter(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.reading.value())? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.enter(0)?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(self.reading.value())? {
            map.push((key.into_key(), entries.next_value_seed(self.reading.value())?));
        }
        Ok(Value::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        self.enter(0)?;
        let (IgnoredAny, contents) = tagged.variant::<IgnoredAny>()?;
        contents.newtype_variant::<IgnoredAny>()?;
        Ok(Value::Tagged)
    }
}
