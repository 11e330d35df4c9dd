//! A post: the attributes of a row.
//!
//! Attributes: <https://meta.stackexchange.com/questions/2677>.

use quick_xml::XmlVersion;
use quick_xml::events::BytesStart;
use serde::{Deserialize, Serialize};

/// Attributes of a row that are looked at; the dump writes at most 24.
const MOST_ATTRIBUTES: usize = 64;

/// What a post is (`PostTypeId`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// 1.
    #[default]
    Question,
    /// 2.
    Answer,
    /// The others: wikis, tag wikis and excerpts, nominations.
    Other(u8),
}

impl Kind {
    /// The reason under which posts that are neither question nor answer are counted.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Question => "post_question",
            Self::Answer => "post_answer",
            Self::Other(3) => "post_wiki",
            Self::Other(4) => "post_tag_excerpt",
            Self::Other(5) => "post_tag_wiki",
            Self::Other(6) => "post_nomination",
            Self::Other(7 | 8) => "post_wiki_placeholder",
            Self::Other(_) => "post_other",
        }
    }
}

/// A post. Its strings are XML-unescaped; the body is HTML until it is rendered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Post {
    /// Where its row begins in the decompressed file.
    #[serde(rename = "o")]
    pub offset: u64,
    #[serde(rename = "k")]
    pub kind: Kind,
    #[serde(rename = "i")]
    pub id: i64,
    /// Of an answer: the question's id.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<i64>,
    /// Of a question: the accepted answer's id.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<i64>,
    #[serde(rename = "s")]
    pub score: i64,
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    #[serde(rename = "x", default, skip_serializing_if = "String::is_empty")]
    pub closed: String,
    #[serde(rename = "l", default, skip_serializing_if = "String::is_empty")]
    pub license: String,
    #[serde(rename = "g", default, skip_serializing_if = "String::is_empty")]
    pub tags: String,
    #[serde(rename = "t", default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    #[serde(rename = "b", default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

impl Post {
    /// Reads the attributes of a row, from `row` to before `>`.
    pub fn parse(row: &str, offset: u64) -> Result<Self, String> {
        let row = row.strip_suffix('/').unwrap_or(row);
        let start = BytesStart::from_content(row, "row".len());
        let mut post = Self { offset, ..Self::default() };
        let (mut has_id, mut has_kind) = (false, false);
        let mut attributes = start.attributes();
        // The check for repeated names is quadratic.
        attributes.with_checks(false);
        for (index, attribute) in attributes.enumerate() {
            if index >= MOST_ATTRIBUTES {
                return Err(format!("more than {MOST_ATTRIBUTES} attributes"));
            }
            let attribute = attribute.map_err(|error| error.to_string())?;
            let key = attribute.key.as_ref();
            let text = || {
                attribute
                    .normalized_value(XmlVersion::Implicit1_0)
                    .map(|value| value.into_owned())
                    .map_err(|error| format!("{key}: {error}"))
            };
            let number = || {
                let value = attribute.value.trim();
                value.parse::<i64>().map_err(|_| format!("{key}={value:?} is no integer"))
            };
            match key {
                "Id" => (post.id, has_id) = (number()?, true),
                "PostTypeId" => {
                    has_kind = true;
                    post.kind = match number()? {
                        1 => Kind::Question,
                        2 => Kind::Answer,
                        other => Kind::Other(u8::try_from(other).unwrap_or(u8::MAX)),
                    };
                }
                "ParentId" => post.parent = Some(number()?),
                "AcceptedAnswerId" => post.accepted = Some(number()?),
                "Score" => post.score = number()?,
                "CreationDate" => post.created = text()?,
                "ClosedDate" => post.closed = text()?,
                "ContentLicense" => post.license = text()?,
                "Tags" => post.tags = text()?,
                "Title" => post.title = text()?,
                "Body" => post.body = text()?,
                _ => {}
            }
        }
        match (has_id, has_kind) {
            (false, _) => Err("no Id".into()),
            (_, false) => Err("no PostTypeId".into()),
            _ => Ok(post),
        }
    }

    /// The tags: `<a><b>` in older dumps, `|a|b|` in newer ones.
    pub fn tags(&self) -> Vec<&str> {
        self.tags.split(['<', '>', '|']).filter(|tag| !tag.is_empty()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_by_attribute() {
        let post = Post::parse(
            "row Score=\"-10\" Body=\"&lt;p&gt;a &amp;amp; b&#xA;&lt;/p&gt;&#xD;&#xA;\" Id='7' \
             PostTypeId=\"2\" ParentId=\"4\" Unknown=\"&\" Tags=\"&lt;c#&gt;&lt;.net&gt;\" /",
            3,
        )
        .unwrap();
        assert_eq!((post.id, post.kind, post.parent, post.score), (7, Kind::Answer, Some(4), -10));
        assert_eq!(post.body, "<p>a &amp; b\n</p>\r\n");
        assert_eq!(post.tags(), ["c#", ".net"]);
        let post = Post::parse("row Id=\"1\" PostTypeId=\"17\" Tags=\"|a|b-c|\"/", 0).unwrap();
        assert_eq!((post.kind.reason(), post.tags()), ("post_other", vec!["a", "b-c"]));
    }

    #[test]
    fn bad_rows_say_why() {
        for (row, why) in [
            ("row PostTypeId=\"1\" /", "no Id"),
            ("row Id=\"1\" /", "no PostTypeId"),
            ("row Id=\"one\" PostTypeId=\"1\"", "Id=\"one\""),
            ("row Id=\"1\" PostTypeId=\"1\" Score=\"9.5\"", "Score"),
            ("row Id=\"1\" PostTypeId=\"1\" Body=\"&bomb;\"", "Body"),
            ("row Id=1 PostTypeId=\"1\"", ""),
            ("row Id=\"99999999999999999999\" PostTypeId=\"1\"", "no integer"),
        ] {
            let error = Post::parse(row, 0).unwrap_err();
            assert!(error.contains(why), "{row}: {error}");
        }
        let many = format!("row {}", "a=\"\" ".repeat(100));
        assert!(Post::parse(&many, 0).unwrap_err().contains("attributes"));
    }
}
