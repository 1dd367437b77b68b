//! Bytes as hexadecimal digits.

/// Two digits for each byte.
pub fn digits(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// The bytes that digits of either case stand for.
pub fn bytes(digits: &str) -> Result<Vec<u8>, String> {
    let value = |(at, d): (usize, &u8)| {
        char::from(*d).to_digit(16).map(|d| d as u8).ok_or_else(|| format!("character {at} of the image is no hexadecimal digit"))
    };
    let values: Vec<u8> = digits.as_bytes().iter().enumerate().map(value).collect::<Result<_, _>>()?;
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(format!("the image has {} digits, which is no even number", values.len()));
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&digits(&all)), Ok(all.clone()));
        assert_eq!(bytes(&digits(&all).to_uppercase()), Ok(all));
        assert_eq!(digits(&[0, 0x5a, 0xff]), "005aff");
        assert_eq!(bytes("abc").unwrap_err(), "the image has 3 digits, which is no even number");
        assert_eq!(bytes("0g").unwrap_err(), "character 1 of the image is no hexadecimal digit");
        assert!(bytes("é0").is_err());
    }
}
