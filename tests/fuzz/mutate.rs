//! Random changes to an input, from a seed: what the tests use in place of libFuzzer.

/// A small generator (splitmix64); the seed alone decides everything.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// Octets of a mutated input, at most.
const LENGTH_MAX: usize = 4_096;

/// One of `corpus` (or nothing), changed in up to eight places.
pub fn mutated(random: &mut Random, corpus: &[Vec<u8>], words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = match corpus {
        [] => Vec::new(),
        corpus => corpus[random.below(corpus.len())].clone(),
    };
    for _ in 0..=random.below(8) {
        change(random, &mut bytes, corpus, words);
    }
    bytes.truncate(LENGTH_MAX);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[Vec<u8>]) {
    const ODD: &[u8] = b"\0\r\n\t .,:;<>()[]@\"\\=+-/%\x7f\x80\xc3\xa9\xff0aZ";
    let at = random.below(bytes.len() + 1);
    let end = at + random.below(bytes.len() - at + 1).min(64);
    match random.below(10) {
        0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 if at < bytes.len() => bytes[at] = ODD[random.below(ODD.len())],
        3 => bytes.insert(at, ODD[random.below(ODD.len())]),
        4 => drop(bytes.drain(at..end)),
        5 if !words.is_empty() => {
            let word = words[random.below(words.len())].clone();
            bytes.splice(at..at, word);
        }
        6 if !words.is_empty() => {
            let word = words[random.below(words.len())].clone();
            bytes.splice(at..end, word);
        }
        7 => {
            let copy = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy.repeat(1 + random.below(4)));
        }
        8 if !corpus.is_empty() => {
            // The head of this one, the tail of another.
            let other = &corpus[random.below(corpus.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        _ => bytes.insert(at, random.next() as u8),
    }
}

/// The words of a dictionary in libFuzzer's form: one `"word"` in each line, `\xNN`, `\\` and `\"`.
pub fn dictionary(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().filter(|line| line.starts_with('"'));
    lines.map(|line| unescaped(line.trim_end().trim_matches('"').as_bytes())).collect()
}

fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut word = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        text = rest;
        match (first, rest) {
            (b'\\', [b'x', high, low, left @ ..]) => {
                let digits = String::from_utf8_lossy(&[*high, *low]).into_owned();
                word.push(u8::from_str_radix(&digits, 16).expect("two hex digits after \\x"));
                text = left;
            }
            (b'\\', [escaped, left @ ..]) => {
                word.push(*escaped);
                text = left;
            }
            _ => word.push(*first),
        }
    }
    word
}
