//! Floats as data of the IR.
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A float that is equal, ordered and hashed by its bits: 0 and -0 differ, and a NaN is equal to itself. Its text reads back to
/// the same bits. Where a format has no infinities (JSON), those are strings.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Float {}

impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Float) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Float {
    fn cmp(&self, other: &Float) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Hash for Float {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            if self.0.to_bits() == f64::NAN.to_bits() {
                return f.write_str("nan");
            }
            return write!(f, "nan(0x{:x})", self.0.to_bits());
        }
        write!(f, "{:?}", self.0)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Name(String),
}

impl Serialize for Float {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = if self.0.is_finite() { Written::Number(self.0) } else { Written::Name(self.0.to_string()) };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(value) => Ok(Float(value)),
            Written::Name(name) => {
                name.parse().map(Float).map_err(|_| D::Error::custom(format!("{name:?} is no number")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Attr;

    #[test]
    fn floats_are_equal_by_bits_and_keep_them_in_json() {
        assert_ne!(Float(0.0), Float(-0.0));
        assert_eq!(Float(f64::NAN), Float(f64::NAN));
        for (value, text) in [(1e-6, r#"{"Float":1e-6}"#), (f64::NEG_INFINITY, r#"{"Float":"-inf"}"#)] {
            let attr = Attr::float(value);
            assert_eq!(serde_json::to_string(&attr).unwrap(), text);
            assert_eq!(serde_json::from_str::<Attr>(text).unwrap(), attr);
        }
    }
}
