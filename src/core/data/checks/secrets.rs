//! Secrets and personal data in texts.

use regex::{Regex, RegexSet};

/// What gives access to something, and the public form of it.
const TOKENS: [(&str, &str); 16] = [
    (
        "a private key",
        concat!(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----(?:[ \r\n]|\\n|",
            r"\\r)*(?:[A-Za-z-]+: [^\n]*[\r\n]+)*[A-Za-z0-9+/=]{40}"
        ),
    ),
    ("an AWS access key", r"(?-u:\b)(?:AKIA|ASIA)[A-Z2-7]{16}(?-u:\b)"),
    ("a GitHub token", r"(?-u:\b)gh[pousr]_[A-Za-z0-9]{36}(?-u:\b)"),
    ("a GitHub token", r"(?-u:\b)github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?-u:\b)"),
    ("a GitLab token", r"(?-u:\b)glpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", r"(?-u:\b)xox[abprs]-[0-9]{8,}-[A-Za-z0-9-]{16,}"),
    ("a Slack webhook", r"hooks\.slack\.com/services/T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/[A-Za-z0-9]{24}(?-u:\b)"),
    ("an Anthropic key", r"(?-u:\b)sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{80,}"),
    ("an OpenAI key", r"(?-u:\b)sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}"),
    ("an OpenAI key", r"(?-u:\b)sk-[A-Za-z0-9]{48}(?-u:\b)"),
    ("a Hugging Face token", r"(?-u:\b)hf_[A-Za-z]{34}(?-u:\b)"),
    ("a Google key", r"(?-u:\b)AIza[A-Za-z0-9_-]{35}"),
    ("a Google secret", r"(?-u:\b)GOCSPX-[A-Za-z0-9_-]{28}"),
    ("a Stripe key", r"(?-u:\b)[sr]k_live_[A-Za-z0-9]{24,}"),
    ("a JSON web token", r"(?-u:\b)eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"),
    ("an npm token", r"(?-u:\b)npm_[A-Za-z0-9]{36}(?-u:\b)"),
];
const PASSWORD: &str = "a password in an address";
/// The contents of the token that is shown wherever web tokens are explained.
const SAMPLE_WEB_TOKEN: &str = "eyJzdWIiOiIxMjM0NTY3ODkwIiwi";
/// Words in what stands for a secret and is none.
const STAND_INS: [&str; 15] = [
    "example",
    "placeholder",
    "your",
    "xxxx",
    "redacted",
    "dummy",
    "sample",
    "fake",
    "changeme",
    "insert",
    "abcdef",
    "123456",
    "....",
    "****",
    "notreal",
];
/// Words in what stands for a password.
const PASSWORD_WORDS: [&str; 9] =
    ["pass", "pwd", "secret", "token", "apikey", "api_key", "admin", "hidden", "anon"];
/// Fewest different characters in a token: random ones of 16 from 32 have 9 or more all but always.
const MIN_DIFFERENT: usize = 9;
/// Shortest password in an address that is taken for a real one.
const MIN_PASSWORD: usize = 6;
/// Hosts of examples and of the machine that an address is used on.
const LOCAL_HOSTS: [&str; 7] = ["localhost", "127.0.0.1", "0.0.0.0", "[::1]", "host", "hostname", "server"];

const EMAIL: &str = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}";
/// Names before the @ that are nobody's.
const NOBODY: [&str; 12] = [
    "git",
    "user",
    "username",
    "you",
    "your",
    "name",
    "someone",
    "email",
    "noreply",
    "no-reply",
    "your.name",
    "your-email",
];
/// Ends of file names and of names of services, which are no domains of letters.
const FILE_ENDS: [&str; 22] = [
    "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "avif", "css", "js", "ts", "json", "html", "txt",
    "md", "service", "socket", "timer", "target", "mount", "example", "invalid",
];
/// Domains that stand for any; those with "example" in them do so anyway.
const EXAMPLE_DOMAINS: [&str; 2] = ["domain.com", "email.com"];

/// Digits in groups as on cards, or in one piece.
const CARD: &str = concat!(
    r"[0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4}(?:[ -][0-9]{3})?|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4,5}|",
    r"[0-9]{14,16}"
);
/// Numbers that payment services publish for tests.
const TEST_CARDS: [&str; 12] = [
    "4242424242424242",
    "4111111111111111",
    "4012888888881881",
    "4000056655665556",
    "5555555555554444",
    "5105105105105100",
    "5200828282828210",
    "378282246310005",
    "371449635398431",
    "6011111111111117",
    "6011000990139424",
    "3530111333300000",
];
const IBAN: &str = r"(?-u:\b)[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}";
/// The lengths of account numbers by country.
const IBAN_LENGTHS: [(&str, usize); 62] = [
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MT", 31),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("TR", 26),
    ("UA", 29),
];
/// Account numbers that explain what one looks like.
const SAMPLE_IBANS: [&str; 5] = [
    "GB82WEST12345698765432",
    "GB29NWBK60161331926819",
    "DE89370400440532013000",
    "FR1420041010050500013M02606",
    "CH9300762011623852957",
];
const SOCIAL_SECURITY: &str = r"[0-9]{3}-[0-9]{2}-[0-9]{4}";
/// Numbers that were printed on cards sold with wallets and in leaflets, or that count up or down.
const SAMPLE_SOCIAL_SECURITY: [&str; 4] = ["078-05-1120", "219-09-9999", "123-45-6789", "987-65-4321"];
/// A plus, the country, and groups of digits; or all digits in one piece.
const PHONE: &str =
    r"\+[1-9][0-9]{0,2}(?:[ -]?\([0-9]{1,4}\)|[ -][0-9]{1,5})(?:[ -][0-9]{2,8}){0,5}|\+[1-9][0-9]{9,14}";
/// Fewest digits of a phone number, and most.
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 8..=15;
/// Numbers in groups of three are amounts unless they have this many digits.
const MIN_DIGITS_IN_THREES: usize = 11;

/// The patterns of secrets and personal data.
pub(super) struct Secrets {
    any: Option<RegexSet>,
    tokens: Vec<(&'static str, Regex)>,
    email: Option<Regex>,
    card: Option<Regex>,
    iban: Option<Regex>,
    social_security: Option<Regex>,
    phone: Option<Regex>,
}

impl Secrets {
    pub(super) fn new() -> Self {
        let tokens: Vec<(&str, Regex)> =
            TOKENS.iter().filter_map(|&(name, pattern)| Some((name, Regex::new(pattern).ok()?))).collect();
        Secrets {
            any: RegexSet::new(tokens.iter().map(|(_, pattern)| pattern.as_str())).ok(),
            tokens,
            email: Regex::new(EMAIL).ok(),
            card: Regex::new(CARD).ok(),
            iban: Regex::new(IBAN).ok(),
            social_security: Regex::new(SOCIAL_SECURITY).ok(),
            phone: Regex::new(PHONE).ok(),
        }
    }

    /// A secret in a text: what kind. Examples and stand-ins are none.
    pub(super) fn secret(&self, text: &str) -> Option<&'static str> {
        let matches = self.any.as_ref()?.matches(text);
        let token = matches
            .iter()
            .filter_map(|number| self.tokens.get(number))
            .find(|(_, pattern)| pattern.find_iter(text).any(|found| is_random(found.as_str())));
        token.map(|&(name, _)| name).or_else(|| has_password(text).then_some(PASSWORD))
    }

    /// Personal data in a text: what kind. What is reserved for examples is none.
    pub(super) fn personal(&self, text: &str) -> Option<&'static str> {
        if text.contains('@') && any(self.email.as_ref(), text, is_email) {
            return Some("an e-mail address");
        }
        if !text.bytes().any(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // An account number may hold what looks like the number of a card.
        if any(self.iban.as_ref(), text, is_iban) {
            Some("a bank account number")
        } else if any(self.card.as_ref(), text, is_card) {
            Some("a payment card number")
        } else if any(self.social_security.as_ref(), text, is_social_security) {
            Some("a US social security number")
        } else if text.contains('+') && any(self.phone.as_ref(), text, is_phone) {
            Some("a phone number")
        } else {
            None
        }
    }
}

/// A match with the text around it.
struct Found<'text> {
    before: &'text str,
    text: &'text str,
    after: &'text str,
}

impl Found<'_> {
    /// Whether it stands alone: no part of a longer number, name, path or formula.
    fn stands_alone(&self) -> bool {
        let joined = |next: char| next.is_alphanumeric() || "_-/=#@&%".contains(next);
        let mut after = self.after.chars();
        let fraction = matches!((after.next(), after.next()), (Some('.' | ','), Some('0'..='9')));
        !self.before.ends_with(|last: char| joined(last) || ".,+$€£".contains(last))
            && !self.after.starts_with(joined)
            && !fraction
    }

    fn digits(&self) -> String {
        self.text.chars().filter(char::is_ascii_digit).collect()
    }
}

fn any(pattern: Option<&Regex>, text: &str, check: fn(&Found) -> bool) -> bool {
    pattern.into_iter().flat_map(|pattern| pattern.find_iter(text)).any(|found| {
        check(&Found {
            before: text.get(..found.start()).unwrap_or_default(),
            text: found.as_str(),
            after: text.get(found.end()..).unwrap_or_default(),
        })
    })
}

/// Whether a token looks drawn by chance, as real ones are.
fn is_random(token: &str) -> bool {
    // Keys begin with runs of one letter and headers in words.
    let (body, key) = match token.strip_prefix("-----BEGIN") {
        Some(key) => (key.rsplit(['\n', '-', ' ']).next().unwrap_or_default(), true),
        None => (token, false),
    };
    let lower = body.to_ascii_lowercase();
    let mut characters: Vec<char> = body.chars().collect();
    let run =
        characters.windows(4).any(|four| four.iter().all(|&character| Some(&character) == four.first()));
    let upper = body.bytes().filter(u8::is_ascii_uppercase).count();
    // Names in code have few capitals.
    let named = token.starts_with("hf_") && upper * 4 < body.len();
    characters.sort_unstable();
    characters.dedup();
    characters.len() >= MIN_DIFFERENT
        && (key || !run)
        && !named
        && !body.contains(SAMPLE_WEB_TOKEN)
        && !STAND_INS.iter().any(|word| lower.contains(word))
        && (!token.starts_with("sk-") || (upper > 2 && body.bytes().any(|byte| byte.is_ascii_digit())))
}

fn has_password(text: &str) -> bool {
    text.match_indices("://").any(|(at, mark)| {
        let rest = text.get(at + mark.len()..).unwrap_or_default();
        let end = rest.find(|next: char| next.is_whitespace() || "/?#\"'`<>()|\\".contains(next));
        let authority = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let Some((user_info, host)) = authority.rsplit_once('@') else { return false };
        user_info.split_once(':').is_some_and(|(user, password)| {
            is_password(user, password) && !is_example_host(host.split(':').next().unwrap_or_default())
        })
    })
}

fn is_password(user: &str, password: &str) -> bool {
    let lower = password.to_lowercase();
    let one_case = password == lower || password == password.to_uppercase();
    let is_word = one_case && lower.chars().all(char::is_alphabetic);
    let is_variable = password.starts_with(['$', '[', '%', '*']) || password.contains(['{', '}', '…']);
    let is_stand_in = STAND_INS.iter().chain(&PASSWORD_WORDS).any(|word| lower.contains(word));
    password.len() >= MIN_PASSWORD
        && different(password) > 2
        && ![lower.as_str(), "user", "username"].contains(&user.to_lowercase().as_str())
        && !is_word
        && !is_variable
        && !is_stand_in
}

fn is_example_host(host: &str) -> bool {
    let host = host.to_lowercase();
    let last = host.rsplit('.').next().unwrap_or_default();
    LOCAL_HOSTS.contains(&host.as_str())
        || host.is_empty()
        || host.contains("example")
        || ["test", "invalid", "localhost"].contains(&last)
}

fn is_email(found: &Found) -> bool {
    let Some((local, domain)) = found.text.split_once('@') else { return false };
    let (local, domain) = (local.to_lowercase(), domain.to_lowercase());
    let last = domain.rsplit('.').next().unwrap_or_default();
    let word = found.before.rsplit(char::is_whitespace).next().unwrap_or_default();
    !EXAMPLE_DOMAINS.contains(&domain.as_str())
        && !local.trim_matches('.').is_empty()
        && !["test", "localhost", "local"].contains(&last)
        && !FILE_ENDS.contains(&last)
        && !NOBODY.contains(&local.as_str())
        && !domain.contains("example")
        && !word.contains("://")
}

fn is_card(found: &Found) -> bool {
    let digits = found.digits();
    let groups: Vec<usize> = found.text.split([' ', '-']).map(str::len).collect();
    let printed = matches!(groups.as_slice(), [14..=16] | [4, 4, 4, 4] | [4, 6, 4 | 5] | [4, 4, 4, 4, 3]);
    let prefix = |length: usize| digits.get(..length).and_then(|start| start.parse().ok()).unwrap_or(0_u32);
    let issued = match digits.len() {
        14 => matches!(prefix(2), 36 | 38) || matches!(prefix(3), 300..=305),
        15 => matches!(prefix(2), 34 | 37),
        16 => {
            matches!(prefix(1), 4)
                || matches!(prefix(2), 51..=55 | 62 | 65)
                || matches!(prefix(3), 644..=649)
                || matches!(prefix(4), 2221..=2720 | 3528..=3589 | 6011)
        }
        19 => matches!(prefix(1), 4) || matches!(prefix(2), 62),
        _ => false,
    };
    printed
        && issued
        && found.stands_alone()
        && different(&digits) > 3
        && !TEST_CARDS.contains(&digits.as_str())
        && luhn(&digits)
}

/// Whether the last digit is the check digit of the others.
fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .chars()
        .rev()
        .filter_map(|digit| digit.to_digit(10))
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit) {
            (0, digit) => digit,
            (_, 0..=4) => digit * 2,
            _ => digit * 2 - 9,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_iban(found: &Found) -> bool {
    let Some(&(_, length)) = IBAN_LENGTHS.iter().find(|(country, _)| found.text.starts_with(country)) else {
        return false;
    };
    let mut number = String::new();
    let mut spaces = 0;
    let mut rest = found.text.chars().chain(found.after.chars());
    while number.len() < length {
        match rest.next() {
            Some(' ') if spaces == 0 => spaces = 1,
            Some(character) if character.is_ascii_uppercase() || character.is_ascii_digit() => {
                number.push(character);
                spaces = 0;
            }
            _ => return false,
        }
    }
    !rest.next().is_some_and(char::is_alphanumeric)
        && !SAMPLE_IBANS.contains(&number.as_str())
        && different(&number) > 4
        && remainder(&number) == Some(1)
}

/// The remainder by 97 of an account number, its first four characters put last and letters as numbers.
fn remainder(number: &str) -> Option<u32> {
    let (start, rest) = number.split_at_checked(4)?;
    rest.chars().chain(start.chars()).try_fold(0, |remainder, character| {
        let value = character.to_digit(36)?;
        Some((remainder * if value < 10 { 10 } else { 100 } + value) % 97)
    })
}

fn is_social_security(found: &Found) -> bool {
    let mut parts = found.text.split('-').map(|part| part.parse().unwrap_or(0_u32));
    let (area, group, serial) = (parts.next(), parts.next(), parts.next());
    matches!(area, Some(1..=665 | 667..=899))
        && group != Some(0)
        && serial != Some(0)
        && different(found.text) > 3
        && !SAMPLE_SOCIAL_SECURITY.contains(&found.text)
        && found.stands_alone()
}

fn is_phone(found: &Found) -> bool {
    let digits = found.digits();
    let groups: Vec<&str> = found.text.split([' ', '-']).skip(1).collect();
    let in_threes = !groups.is_empty() && groups.iter().all(|group| group.len() == 3);
    let is_amount = in_threes && digits.len() < MIN_DIGITS_IN_THREES;
    let in_formula =
        found.before.trim_end().ends_with(|last: char| last.is_ascii_digit() || "=)]".contains(last));
    // Numbers kept for films and examples, in America and in Britain.
    let fictional = (digits.starts_with('1') && digits.contains("555")) || digits.starts_with("44207946");
    PHONE_DIGITS.contains(&digits.len())
        && different(&digits) > 3
        && !digits.contains("123456")
        && !is_amount
        && !in_formula
        && !fictional
        && found.stands_alone()
}

fn different(text: &str) -> usize {
    let mut characters: Vec<char> = text.chars().filter(char::is_ascii_alphanumeric).collect();
    characters.sort_unstable();
    characters.dedup();
    characters.len()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::random::mix_pair;

    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const BASE32: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

    /// Characters drawn by chance, so that no text that looks like a secret is kept here.
    fn drawn(seed: u64, length: usize, alphabet: &str) -> String {
        let alphabet: Vec<char> = alphabet.chars().collect();
        let drawn = |place| alphabet[mix_pair(seed, place) as usize % alphabet.len()];
        (0..length as u64).map(drawn).collect()
    }

    fn mixed(seed: u64, length: usize) -> String {
        drawn(seed, length, &format!("{LETTERS}0123456789"))
    }

    fn planted(seed: u64) -> Vec<(&'static str, String)> {
        let any = |length| mixed(seed, length);
        let key = format!("-----BEGIN RSA PRIVATE{}-----\n{}\n{}", " KEY", any(64), any(64));
        let open = format!("-----BEGIN OPENSSH PRIVATE{}-----\nb3BlbnNzaC1rZXktdjEAAAAA{}", " KEY", any(46));
        vec![
            ("a private key", key),
            ("a private key", open),
            ("an AWS access key", format!("AKIA{}", drawn(seed, 16, BASE32))),
            ("a GitHub token", format!("ghp_{}", any(36))),
            ("a GitHub token", format!("github_pat_{}_{}", any(22), any(59))),
            ("a GitLab token", format!("glpat-{}", any(20))),
            ("a Slack token", format!("xoxb-{}-{}", drawn(seed, 12, "0123456789"), any(24))),
            (
                "a Slack webhook",
                format!("https://hooks.slack.com/services/T0{0}/B0{0}/{1}", drawn(seed, 8, BASE32), any(24)),
            ),
            ("an Anthropic key", format!("sk-ant-api03-{}-{}", any(70), any(22))),
            ("an OpenAI key", format!("sk-proj-{}", any(64))),
            ("an OpenAI key", format!("sk-{}", any(48))),
            ("a Hugging Face token", format!("hf_{}", drawn(seed, 34, LETTERS))),
            ("a Google key", format!("AIza{}", any(35))),
            ("a Google secret", format!("GOCSPX-{}", any(28))),
            ("a Stripe key", format!("sk_live_{}", any(24))),
            ("a JSON web token", format!("eyJ{}.eyJ{}.{}", any(20), any(60), any(43))),
            ("an npm token", format!("npm_{}", any(36))),
        ]
    }

    #[test]
    fn the_patterns_compile() {
        let secrets = Secrets::new();
        assert_eq!(secrets.tokens.len(), TOKENS.len());
        assert!(secrets.any.is_some() && secrets.email.is_some() && secrets.card.is_some());
        assert!(secrets.iban.is_some() && secrets.social_security.is_some() && secrets.phone.is_some());
    }

    #[test]
    fn planted_secrets_are_found_by_name() {
        let secrets = Secrets::new();
        let mut missed = 0;
        for seed in 0..50 {
            for (name, token) in planted(seed) {
                let found = secrets.secret(&format!("Das Passwort lautet über: key = \"{token}\", ok?"));
                missed += usize::from(found != Some(name));
            }
        }
        // A few of those drawn have four equal characters in a row, or too few different ones.
        assert!(missed <= 2, "{missed}");
    }

    #[test]
    fn passwords_in_addresses_are_found() {
        let secrets = Secrets::new();
        let found = |text: &str| secrets.secret(text).is_some();
        for (user, password, host) in [
            ("app", "Xk93jd8aQ", "db.acme.io:5432/main"),
            ("bob", "hunter2", "ftp.acme.io"),
            ("", "p%40wz91!", "10.0.0.7"),
        ] {
            assert!(found(&format!("connect to postgres://{user}:{password}@{host} now")), "{host}");
        }
        for text in [
            "https://user:password@host.com/path",
            "postgres://postgres:postgres@db:5432/app",
            "mysql://scott:tiger@db.acme.io",
            "redis://:${REDIS_PASSWORD}@cache:6379",
            "https://<user>:<password>@acme.io",
            "amqp://guest:gu3st99@localhost",
            "https://bob:hunter2@example.com",
            "https://{user}:{pass}@{host}/",
            "https://acme.io:8080/a@b",
            "see https://acme.io, then mail: x@y",
            "ssh://git@acme.io/a.git",
            "https://bob:xxxxxxxx@acme.io",
            "https://user:he%2F%2Fo3@acme.io/simple",
            "cvs -d :pserver:anoncvs@acme.io and http://:pserver:anoncvs@acme.io:/cvs",
            "https://bob:YOUR_TOKEN_1@acme.io",
        ] {
            assert!(!found(text), "{text}");
        }
    }

    #[test]
    fn stand_ins_are_no_secrets() {
        let secrets = Secrets::new();
        let unfinished = format!("-----BEGIN PRIVATE{}-----\n...\n-----END PRIVATE KEY-----", " KEY");
        let sample = format!(
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{SAMPLE_WEB_TOKEN}bmFtZSI6IkpvaG4gRG9lIn0.{}",
            mixed(1, 43)
        );
        for text in [
            "",
            "AKIAIOSFODNN7EXAMPLE",
            "export OPENAI_API_KEY=sk-...",
            "sk-your-api-key-goes-here-and-it-is-quite-long-as-you-can-see",
            "sk-proj-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "sk-proj-a-long-name-in-kebab-case-for-a-class-of-a-page-in-css",
            "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "hf_someVeryLongFunctionNameInCamelCase",
            "hf_download_the_files",
            "api_key = \"your_api_key\"",
            "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA",
            "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
            "550e8400-e29b-41d4-a716-446655440000",
            "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
            "Never paste a private key or a token into a chat.",
            "task-force, risk-averse, disk-usage, ask-me-anything",
            unfinished.as_str(),
            sample.as_str(),
        ] {
            assert_eq!(secrets.secret(text), None, "{text}");
        }
    }

    #[test]
    fn personal_data_are_found() {
        let secrets = Secrets::new();
        for (text, name) in [
            ("write to ann.b+c@mail.acme.io!", "an e-mail address"),
            ("mailto:ann@acme.io", "an e-mail address"),
            ("Name:Ann,E-Mail:ann@acme.co.uk", "an e-mail address"),
            ("pay with 4539 1488 0343 6467 please", "a payment card number"),
            ("card 4539148803436467.", "a payment card number"),
            ("5425-2334-3010-9903", "a payment card number"),
            ("Amex 3742 454554 00126", "a payment card number"),
            ("überweisen an DE75 5121 0800 1245 1261 99, danke", "a bank account number"),
            ("IBAN: NL02ABNA0123456789", "a bank account number"),
            ("her SSN is 536-22-8726.", "a US social security number"),
            ("call +49 30 901820 today", "a phone number"),
            ("Tel. +34 612 908 377", "a phone number"),
            ("+1 (212) 736-5000", "a phone number"),
            ("(+4915778903261)", "a phone number"),
        ] {
            assert_eq!(secrets.personal(text), Some(name), "{text}");
        }
    }

    #[test]
    fn other_numbers_and_names_are_not_personal() {
        let secrets = Secrets::new();
        for text in [
            "",
            "@ann, see a@b and 3@4.5",
            "ann@example.com, bob@mail.example.org, x@acme.test, y@acme.invalid",
            "icon@2x.png and logo@3x.webp",
            "git clone git@github.com:acme/tool.git",
            "systemctl start getty@tty1.service",
            "npm install react@18.2.0 @types/node@20.1",
            "https://bob@acme.io/path",
            "@app.route(\"/\")",
            "4242 4242 4242 4242 and 4111111111111111",
            "4539 1488 0343 6468",
            "order 45391488034364670, id_4539148803436467, 0.4539148803436467, v=4539148803436467",
            "ISBN 978-3-16-148410-0, EAN 4006381333931",
            "timestamps 1717171717171 and 20240101120000",
            "3.14159265358979323846264338327950288",
            "0000 0000 0000 0000",
            "IBAN DE89 3704 0044 0532 0130 00",
            "DE12 3456 7890 1234 5678 90",
            "AB12 CDEF 3456, part GB82 TEST",
            "123-45-6789, 000-12-3456, 666-12-3456, 900-12-3456, 536-00-1234",
            "part 12-536-22-8726-1 and #536-22-8726",
            "2024-01-15T10:00:00+02:00",
            "+2024-01-01 10:00 removed",
            "x = 5 +49 30 901820",
            "+1 555 010 0199 and +44 20 7946 0123",
            "grew by +25 300 400 euros, +1 000 000 000",
            "+48.8566 2.3522",
            "+10 %, +12345678, +100",
            "C++11 14 17 20",
            "192.168.10.14 and 2001:db8::1",
            "1+49 30 901820",
            "Keep your e-mail address and phone number private.",
            "| 2021 | 4000 | 5000 | 6000 |\n| 1 | 2 | 3 | 4 |",
            "[4539, 1488, 0343, 6467]",
            "{\"a\": 4539, \"b\": [1, 2, 3]}",
            "01 23 45 67 89 and 030 901820",
        ] {
            assert_eq!(secrets.personal(text), None, "{text}");
        }
    }
}
