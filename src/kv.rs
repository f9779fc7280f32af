//! The words for KV caches on the command line.
use rdc_ir::DType;
use rdc_ir::program::KvPolicy;

/// The element type that `--kv-dtype` names.
pub fn parse_dtype(text: &str) -> Result<DType, String> {
    let dtype = DType::parse(text).filter(|dtype| matches!(dtype, DType::F32 | DType::BF16));
    dtype.ok_or_else(|| format!("`{text}` is not one of f32, bf16"))
}

/// The policy that `--kv` names.
pub fn parse(text: &str) -> Result<KvPolicy, String> {
    let number = |digits: &str| match digits.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}`: {digits} is not a number of at least 1")),
        Ok(n) => Ok(n),
    };
    match text.split_once(':') {
        Some(("modulo", k)) => number(k).map(KvPolicy::Modulo),
        Some(("block", m)) => number(m).map(KvPolicy::Block),
        None if text == "full" => Ok(KvPolicy::Full),
        None if text == "anchor" => Ok(KvPolicy::Anchor),
        _ => Err(format!("`{text}` is not one of full, modulo:K, block:M, anchor")),
    }
}

/// The words for a policy.
pub fn name(policy: KvPolicy) -> String {
    match policy {
        KvPolicy::Full => "full".into(),
        KvPolicy::Modulo(k) => format!("modulo:{k}"),
        KvPolicy::Block(m) => format!("block:{m}"),
        KvPolicy::Anchor => "anchor".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_policies_correspond() {
        for text in ["full", "modulo:4", "block:3", "anchor"] {
            assert_eq!(parse(text).map(name), Ok(text.to_string()));
        }
        for text in ["modulo", "modulo:0", "block:x", "ring", ""] {
            assert!(parse(text).is_err());
        }
        for (text, dtype) in [("f32", Some(DType::F32)), ("bf16", Some(DType::BF16)), ("i8", None), ("half", None)] {
            assert_eq!(parse_dtype(text).ok(), dtype);
        }
    }
}
