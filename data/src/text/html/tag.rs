//! The elements that matter to text.

macro_rules! tags {
    ($($variant:ident $name:literal,)*) => {
        /// An element by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Tag {
            $($variant,)*
            /// Everything else: inline, without influence on white space.
            Other,
        }

        impl Tag {
            /// The element called `name`, in any case.
            pub fn from_name(name: &[u8]) -> Self {
                let mut lower = [0; LONGEST_NAME];
                let Some(lower) = lower.get_mut(..name.len()) else {
                    return Self::Other;
                };
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                match &*lower {
                    $($name => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }
    };
}

/// Length of the longest name below.
const LONGEST_NAME: usize = 10;

tags! {
    Address b"address", Annotation b"annotation", Article b"article", Aside b"aside", Audio
    b"audio", Blockquote b"blockquote", Body b"body", Br b"br", Canvas b"canvas", Caption
    b"caption", Center b"center", Dd b"dd", Details b"details", Dialog b"dialog", Dir b"dir",
    Div b"div", Dl b"dl", Dt b"dt", Fieldset b"fieldset", Figcaption b"figcaption", Figure
    b"figure", Footer b"footer", Form b"form", Frameset b"frameset", H1 b"h1", H2 b"h2", H3
    b"h3", H4 b"h4", H5 b"h5", H6 b"h6", Head b"head", Header b"header", Hgroup b"hgroup", Hr
    b"hr", Html b"html", Iframe b"iframe", Legend b"legend", Li b"li", Listing b"listing", Main
    b"main", Menu b"menu", Nav b"nav", Noembed b"noembed", Noframes b"noframes", Noscript
    b"noscript", Object b"object", Ol b"ol", Optgroup b"optgroup", Option b"option", P b"p",
    Plaintext b"plaintext", Pre b"pre", Script b"script", Search b"search", Section b"section",
    Style b"style", Sub b"sub", Summary b"summary", Sup b"sup", Svg b"svg", Table b"table", Tbody b"tbody", Td b"td",
    Template b"template", Textarea b"textarea", Tfoot b"tfoot", Th b"th", Thead b"thead", Title
    b"title", Tr b"tr", Ul b"ul", Video b"video", Xmp b"xmp",
}

/// How the contents of an element are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Tags and text.
    Markup,
    /// Text up to the end tag.
    Raw,
    /// A script, with its own rule for the end tag.
    Script,
    /// Text up to the end of the file.
    Plaintext,
}

impl Tag {
    /// How its contents are read.
    pub fn content(self) -> Content {
        match self {
            Self::Script => Content::Script,
            Self::Plaintext => Content::Plaintext,
            Self::Iframe
            | Self::Noembed
            | Self::Noframes
            | Self::Noscript
            | Self::Style
            | Self::Textarea
            | Self::Title
            | Self::Xmp => Content::Raw,
            _ => Content::Markup,
        }
    }

    /// Whether a line ends before and after it.
    pub fn is_block(self) -> bool {
        !matches!(
            self,
            Self::Other
                | Self::Annotation
                | Self::Audio
                | Self::Canvas
                | Self::Head
                | Self::Iframe
                | Self::Noembed
                | Self::Noframes
                | Self::Noscript
                | Self::Object
                | Self::Script
                | Self::Style
                | Self::Sub
                | Self::Sup
                | Self::Svg
                | Self::Td
                | Self::Template
                | Self::Textarea
                | Self::Th
                | Self::Title
                | Self::Video
        )
    }

    /// Whether it is a block inside another one, never set off by blank lines.
    pub fn is_row(self) -> bool {
        matches!(
            self,
            Self::Caption
                | Self::Dd
                | Self::Dt
                | Self::Legend
                | Self::Li
                | Self::Optgroup
                | Self::Option
                | Self::Tbody
                | Self::Tfoot
                | Self::Thead
                | Self::Tr
        )
    }

    /// Whether it is a cell of a table.
    pub fn is_cell(self) -> bool {
        matches!(self, Self::Td | Self::Th)
    }

    /// Whether it is a list.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Ul | Self::Ol | Self::Menu | Self::Dir)
    }

    /// Whether its text is not shown, or only where a medium cannot be.
    pub fn is_skipped(self) -> bool {
        matches!(
            self,
            Self::Annotation
                | Self::Audio
                | Self::Canvas
                | Self::Object
                | Self::Svg
                | Self::Template
                | Self::Video
        )
    }

    /// Whether white space inside it is kept.
    pub fn is_verbatim(self) -> bool {
        matches!(self, Self::Pre | Self::Listing)
    }

    /// Whether it is tracked on the stack of open elements: what changes the reading of text,
    /// and what closes such elements when it ends.
    pub fn is_tracked(self) -> bool {
        self.is_skipped()
            || self.is_verbatim()
            || self.is_cell()
            || self.is_list()
            || matches!(
                self,
                Self::Address
                    | Self::Article
                    | Self::Aside
                    | Self::Blockquote
                    | Self::Caption
                    | Self::Center
                    | Self::Details
                    | Self::Dialog
                    | Self::Div
                    | Self::Dl
                    | Self::Fieldset
                    | Self::Figure
                    | Self::Footer
                    | Self::Form
                    | Self::Header
                    | Self::Hgroup
                    | Self::Main
                    | Self::Nav
                    | Self::Section
                    | Self::Table
            )
    }

    /// Whether end tags of other elements do not reach through it (the standard's scope markers).
    pub fn is_barrier(self) -> bool {
        self.is_cell()
            || matches!(self, Self::Caption | Self::Object | Self::Table | Self::Template)
    }

    /// Whether its start ends an open `<svg>`.
    pub fn ends_svg(self) -> bool {
        matches!(
            self,
            Self::Blockquote
                | Self::Body
                | Self::Br
                | Self::Center
                | Self::Dd
                | Self::Div
                | Self::Dl
                | Self::Dt
                | Self::H1
                | Self::H2
                | Self::H3
                | Self::H4
                | Self::H5
                | Self::H6
                | Self::Head
                | Self::Hr
                | Self::Li
                | Self::Listing
                | Self::Menu
                | Self::Ol
                | Self::P
                | Self::Pre
                | Self::Table
                | Self::Ul
        )
    }
}
