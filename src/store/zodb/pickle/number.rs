//! Numbers of pickles that are spelt as text or as two's complement of any length.

use super::Value;

/// An integer in two's complement, little-endian; no bytes at all are 0.
pub fn from_bytes(bytes: &[u8]) -> Value<'_> {
    let is_negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
    match bytes {
        [low @ .., 0] if low.len() == 8 => match low.first_chunk() {
            Some(raw) => from_u64(u64::from_le_bytes(*raw)),
            None => Value::BigInt(bytes),
        },
        short if short.len() <= 8 => {
            let fill = if is_negative { u64::MAX } else { 0 };
            let raw = short.iter().rev().fold(fill, |raw, byte| raw << 8 | u64::from(*byte));
            Value::Int(raw.cast_signed())
        }
        long => Value::BigInt(long),
    }
}

/// The smallest kind that holds it.
fn from_u64(raw: u64) -> Value<'static> {
    i64::try_from(raw).map_or(Value::Uint(raw), Value::Int)
}

/// An integer as a decimal line; `None` if it is no number.
pub fn from_line(line: &[u8]) -> Option<Value<'_>> {
    let text = std::str::from_utf8(line).ok()?;
    if let Ok(int) = text.parse::<i64>() {
        return Some(Value::Int(int));
    }
    if let Ok(uint) = text.parse::<u64>() {
        return Some(Value::Uint(uint));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(Value::BigInt(line))
}

/// A float as a line; `None` if it is no number.
pub fn float_from_line(line: &[u8]) -> Option<Value<'_>> {
    std::str::from_utf8(line).ok()?.parse().ok().map(Value::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_bytes_have_their_sign_and_kind() {
        for (bytes, value) in [
            (&b""[..], Value::Int(0)),
            (b"\x05", Value::Int(5)),
            (b"\xff", Value::Int(-1)),
            (b"\xff\x00", Value::Int(255)),
            (b"\x00\x80", Value::Int(-32768)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x7f", Value::Int(i64::MAX)),
            (b"\x00\x00\x00\x00\x00\x00\x00\x80", Value::Int(i64::MIN)),
            (b"\x01\x00\x00\x00\x00\x00\x00\x00\x00", Value::Int(1)),
            (b"\x00\x00\x00\x00\x00\x00\x00\x80\x00", Value::Uint(1 << 63)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\x00", Value::Uint(u64::MAX)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\x01", Value::BigInt(b"\xff\xff\xff\xff\xff\xff\xff\xff\x01")),
            (b"\xff\xff\xff\xff\xff\xff\xff\x7f\xff", Value::BigInt(b"\xff\xff\xff\xff\xff\xff\xff\x7f\xff")),
        ] {
            assert_eq!(from_bytes(bytes), value, "{bytes:?}");
        }
    }

    #[test]
    fn integers_of_lines_have_their_kind() {
        for (line, value) in [
            (&b"0"[..], Some(Value::Int(0))),
            (b"-9223372036854775808", Some(Value::Int(i64::MIN))),
            (b"9223372036854775808", Some(Value::Uint(1 << 63))),
            (b"18446744073709551616", Some(Value::BigInt(b"18446744073709551616"))),
            (b"-9223372036854775809", Some(Value::BigInt(b"-9223372036854775809"))),
            (b"", None),
            (b"-", None),
            (b"1e3", None),
            (b"\xff", None),
        ] {
            assert_eq!(from_line(line), value, "{line:?}");
        }
        assert_eq!(float_from_line(b"1e+100"), Some(Value::Float(1e100)));
        assert_eq!(float_from_line(b"one"), None);
    }
}
