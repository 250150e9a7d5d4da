//! The style of each role. The only place that names a colour.

mod depth;
mod load;
mod roles;

use std::collections::HashMap;

use ratatui::style::{Modifier, Style};
use strum::{EnumString, IntoEnumIterator, IntoStaticStr};

pub use depth::{ColorDepth, ColorHints};
pub use load::{DEFAULT, Library};
pub use roles::Role;

/// What charts are drawn with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Markers {
    /// Eight dots a cell; needs a font that has them.
    #[default]
    Braille,
    Block,
    Ascii,
}

/// A look for every role, made for one depth of colours.
#[derive(Clone, Debug, PartialEq)]
pub struct Theme {
    name: String,
    markers: Markers,
    styles: HashMap<Role, Style>,
}

impl Theme {
    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn markers(&self) -> Markers {
        self.markers
    }

    pub fn style(&self, role: Role) -> Style {
        self.styles.get(&role).copied().unwrap_or_default()
    }

    /// The looks that `defined` gives, shown in `depth` colours; roles without one look like their parents.
    fn new(name: &str, markers: Markers, defined: &HashMap<Role, Style>, depth: ColorDepth) -> Self {
        let styles = Role::iter().map(|role| {
            let mut nearest = role;
            while !defined.contains_key(&nearest) {
                match nearest.parent() {
                    Some(parent) => nearest = parent,
                    None => break,
                }
            }
            let mut style = depth::degrade(defined.get(&nearest).copied().unwrap_or_default(), depth);
            if depth == ColorDepth::None {
                style.add_modifier = role.plain() | (style.add_modifier & Modifier::BOLD);
            }
            (role, style)
        });
        Self { name: name.to_owned(), markers, styles: styles.collect() }
    }
}
