//! Theme files: TOML with a palette, a style per role, and the theme they extend.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use luthier_core::files::read_text;
use luthier_core::text;
use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

use super::depth::fits_sixteen;
use super::{ColorDepth, Markers, Role, Theme};

/// The default theme.
pub const DEFAULT: &str = "luthier";

/// The theme used on sixteen colours if the chosen one needs more.
const SIXTEEN: &str = "sixteen";

const BUILT_IN: &[(&str, &str)] = &[
    ("luthier", include_str!("../../../themes/luthier.toml")),
    ("luthier-light", include_str!("../../../themes/luthier-light.toml")),
    ("high-contrast", include_str!("../../../themes/high-contrast.toml")),
    ("sixteen", include_str!("../../../themes/sixteen.toml")),
];

/// Longest chain of themes that extend one another.
const MAX_CHAIN: usize = 8;

/// Largest theme file read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// A theme file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    inherits: Option<String>,
    markers: Option<String>,
    #[serde(default)]
    palette: HashMap<String, String>,
    #[serde(default)]
    roles: HashMap<String, Look>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Look {
    Foreground(String),
    Full(FullLook),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FullLook {
    fg: Option<String>,
    bg: Option<String>,
    #[serde(default)]
    modifiers: Vec<String>,
}

/// Where themes come from: the user's folder, then those built in.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// The user's themes, `<name>.toml` each.
    pub folder: Option<PathBuf>,
    /// The terminal's colours.
    pub depth: Option<ColorDepth>,
    /// Whether only ASCII may be written.
    pub ascii: bool,
}

impl Library {
    /// The names of all themes, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
        let entries = self.folder.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "toml")
                && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// The user's files that theme `name` may be read from, whether or not they exist.
    pub fn files(&self, name: &str) -> Vec<PathBuf> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let names = self.names().into_iter().chain(is_plain(name).then(|| name.to_owned()));
        let mut files: Vec<PathBuf> = names.map(|name| folder.join(format!("{name}.toml"))).collect();
        files.sort();
        files.dedup();
        files
    }

    /// The theme called `name` and everything that is wrong with it. There is always one: a part that cannot be
    /// used is left out, and the last resort is the built-in theme.
    pub fn load(&self, name: &str) -> (Theme, Vec<String>) {
        let depth = self.depth.unwrap_or(ColorDepth::True);
        let mut warnings = Vec::new();
        let mut defined = Defined::default();
        self.collect(name, &mut defined, &mut warnings, 0);
        let mut styles = defined.styles(&mut warnings);
        if depth == ColorDepth::Ansi16 && !styles.values().copied().all(fits_sixteen) {
            let mut fallback = Defined::default();
            self.collect(SIXTEEN, &mut fallback, &mut warnings, 0);
            styles = fallback.styles(&mut warnings);
        }
        let markers = if self.ascii { Markers::Ascii } else { defined.markers.unwrap_or_default() };
        (Theme::new(name, markers, &styles, depth), warnings)
    }

    fn collect(&self, name: &str, defined: &mut Defined, warnings: &mut Vec<String>, chain: usize) {
        let shown = text::clean_line(name).into_owned();
        if chain == MAX_CHAIN {
            warnings.push(format!("theme {shown}: more than {MAX_CHAIN} themes inherit from one another"));
            return;
        }
        let written = match self.read(name) {
            Ok(Some(written)) => written,
            Ok(None) => {
                let names = self.names().join(", ");
                warnings.push(format!("there is no theme {shown}; there are {names}"));
                if name != DEFAULT {
                    self.collect(DEFAULT, defined, warnings, chain + 1);
                }
                return;
            }
            Err(problem) => {
                warnings.push(format!("theme {shown}: {problem}"));
                if name != DEFAULT {
                    self.collect(DEFAULT, defined, warnings, chain + 1);
                }
                return;
            }
        };
        let file: File = match toml::from_str(&written) {
            Ok(file) => file,
            Err(problem) => {
                warnings.push(format!("theme {shown}: {problem}"));
                if name != DEFAULT {
                    self.collect(DEFAULT, defined, warnings, chain + 1);
                }
                return;
            }
        };
        if let Some(parent) = &file.inherits {
            self.collect(parent, defined, warnings, chain + 1);
        }
        defined.apply(file, &shown, warnings);
    }

    /// The text of a theme: the user's first.
    fn read(&self, name: &str) -> Result<Option<String>, String> {
        if !is_plain(name) {
            return Ok(None);
        }
        if let Some(path) = self.folder.as_ref().map(|folder| folder.join(format!("{name}.toml"))) {
            match read_text(&path, MAX_FILE) {
                Ok(text) => return Ok(Some(text)),
                Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => {}
                Err(problem) => return Err(format!("{}: {problem}", path.display())),
            }
        }
        Ok(built_in(name).map(str::to_owned))
    }
}

/// Whether `name` is a plain name and not a path.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|character| character.is_alphanumeric() || matches!(character, '-' | '_'))
}

fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(built_in, _)| *built_in == name).map(|(_, written)| *written)
}

/// What the files of a chain define together: palettes first, so that a theme may change the colours of
/// its parent's roles by giving its palette other values.
#[derive(Default)]
struct Defined {
    palette: HashMap<String, String>,
    markers: Option<Markers>,
    /// Of every role the looks that the files give it, the nearest theme's last.
    looks: HashMap<Role, Vec<(String, Look)>>,
}

impl Defined {
    fn apply(&mut self, file: File, name: &str, warnings: &mut Vec<String>) {
        if let Some(markers) = &file.markers {
            match Markers::from_str(markers) {
                Ok(markers) => self.markers = Some(markers),
                Err(_) => warnings.push(format!(
                    "theme {name}: markers = \"{}\" is not braille, block or ascii",
                    text::clean_line(markers)
                )),
            }
        }
        self.palette.extend(file.palette);
        for (role, look) in file.roles {
            match Role::from_str(&role) {
                Ok(role) => {
                    self.looks.entry(role).or_default().push((name.to_owned(), look));
                }
                Err(_) => {
                    warnings.push(format!("theme {name}: there is no role `{}`", text::clean_line(&role)));
                }
            }
        }
    }

    fn styles(&self, warnings: &mut Vec<String>) -> HashMap<Role, Style> {
        let mut styles = HashMap::new();
        for (role, looks) in &self.looks {
            // A look that cannot be read leaves the role with the one before it.
            for (name, look) in looks.iter().rev() {
                match self.style(look) {
                    Ok(style) => {
                        styles.insert(*role, style);
                        break;
                    }
                    Err(problem) => warnings.push(format!("theme {name}: {}: {problem}", role.name())),
                }
            }
        }
        warnings.sort();
        styles
    }

    fn style(&self, look: &Look) -> Result<Style, String> {
        let full = match look {
            Look::Foreground(color) => {
                return Ok(Style::new().fg(self.color(color)?));
            }
            Look::Full(full) => full,
        };
        let mut style = Style::new();
        style.fg = full.fg.as_deref().map(|color| self.color(color)).transpose()?;
        style.bg = full.bg.as_deref().map(|color| self.color(color)).transpose()?;
        for modifier in &full.modifiers {
            style = style.add_modifier(match modifier.as_str() {
                "bold" => Modifier::BOLD,
                "dim" => Modifier::DIM,
                "italic" => Modifier::ITALIC,
                "underline" => Modifier::UNDERLINED,
                "reverse" => Modifier::REVERSED,
                "crossed-out" => Modifier::CROSSED_OUT,
                other => {
                    return Err(format!(
                        "`{}` is not one of bold, dim, italic, underline, reverse, crossed-out",
                        text::clean_line(other)
                    ));
                }
            });
        }
        Ok(style)
    }

    fn color(&self, name: &str) -> Result<Color, String> {
        let written = self.palette.get(name).map_or(name, String::as_str);
        Color::from_str(written).map_err(|_| {
            format!(
                "`{}` is neither in [palette] nor a colour like red, 208 or #rrggbb",
                text::clean_line(written)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    fn library(depth: ColorDepth) -> Library {
        Library { depth: Some(depth), ..Library::default() }
    }

    #[test]
    fn every_theme_built_in_is_flawless_in_every_depth() {
        for depth in [ColorDepth::None, ColorDepth::Ansi16, ColorDepth::Ansi256, ColorDepth::True] {
            for name in library(depth).names() {
                let (theme, warnings) = library(depth).load(&name);
                assert_eq!(warnings, Vec::<String>::new(), "{name}");
                assert_eq!(theme.styles.len(), Role::iter().count());
            }
        }
    }

    #[test]
    fn what_must_differ_differs_in_every_theme_and_depth() {
        let pairs = [
            (Role::Selection, Role::Screen),
            (Role::Selection, Role::SelectionIdle),
            (Role::TabActive, Role::Tab),
            (Role::ButtonFocus, Role::Button),
            (Role::InputCursor, Role::Input),
            (Role::Trained, Role::Untrained),
            (Role::Error, Role::Screen),
            (Role::Match, Role::Screen),
            (Role::Key, Role::Hint),
        ];
        for depth in [ColorDepth::None, ColorDepth::Ansi16, ColorDepth::Ansi256, ColorDepth::True] {
            for name in library(depth).names() {
                let theme = library(depth).load(&name).0;
                for (left, right) in pairs {
                    assert_ne!(theme.style(left), theme.style(right), "{name} {depth:?} {left:?} {right:?}");
                }
            }
        }
    }

    /// Relative luminance, as WCAG 2.2 defines it.
    fn luminance(color: Color) -> Option<f64> {
        let Color::Rgb(red, green, blue) = color else { return None };
        let linear = |channel: u8| {
            let share = f64::from(channel) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        Some(0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue))
    }

    #[test]
    fn text_stands_out_from_its_background() {
        for (name, least) in [("luthier", 4.5), ("luthier-light", 4.5), ("high-contrast", 7.0)] {
            let theme = library(ColorDepth::True).load(name).0;
            let screen = theme.style(Role::Screen);
            for role in Role::iter() {
                let style = theme.style(role);
                let least =
                    if matches!(role, Role::Rule | Role::PopupRule | Role::GaugeRest) { 1.5 } else { least };
                let fore = style.fg.or(screen.fg).and_then(luminance).unwrap();
                let back = style.bg.or(screen.bg).and_then(luminance).unwrap();
                let ratio = (fore.max(back) + 0.05) / (fore.min(back) + 0.05);
                assert!(ratio >= least, "{name}: {role:?} has a contrast of {ratio:.2}");
            }
        }
    }

    #[test]
    fn without_colours_there_are_none() {
        for name in library(ColorDepth::None).names() {
            let theme = library(ColorDepth::None).load(&name).0;
            for role in Role::iter() {
                let style = theme.style(role);
                assert!(matches!(style.fg, None | Some(Color::Reset)), "{name} {role:?}");
                assert!(matches!(style.bg, None | Some(Color::Reset)), "{name} {role:?}");
            }
        }
    }

    #[test]
    fn a_persons_theme_goes_over_its_parent_and_never_fails() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "mine.toml",
            "inherits = \"luthier\"\n[palette]\nloud = \"#ff0000\"\n[roles]\nerror = \"loud\"\nnope = \"red\"\ntitle = { fg = \"blurple\" }\n",
        );
        write("loop.toml", "inherits = \"loop\"\n");
        write("broken.toml", "[roles\n");
        let library = Library { folder: Some(folder.path().into()), ..library(ColorDepth::True) };
        let (theme, warnings) = library.load("mine");
        assert_eq!(theme.style(Role::Error).fg, Some(Color::Rgb(255, 0, 0)));
        assert_eq!(theme.style(Role::Title), library.load("luthier").0.style(Role::Title));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for name in ["loop", "broken", "missing", "../mine", ""] {
            let (_, warnings) = library.load(name);
            assert!(!warnings.is_empty(), "{name}");
        }
        assert!(library.names().contains(&"mine".to_owned()));
        assert_eq!(library.load("broken").0.style(Role::Error), library.load("luthier").0.style(Role::Error));
    }
}
