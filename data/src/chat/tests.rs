#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Map, json};

use super::*;

fn specials() -> SpecialTokens {
    SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        ids: vec![("<s>".into(), 1), ("</s>".into(), 2)],
    }
}

fn prompt() -> RenderOptions {
    RenderOptions { add_generation_prompt: true, ..RenderOptions::default() }
}

fn conversation(said: &[(&str, &str)]) -> Vec<Message> {
    said.iter().map(|(role, content)| Message::new(role, content)).collect()
}

fn text(template: &ChatTemplate, said: &[(&str, &str)], options: &RenderOptions) -> String {
    template.render(&conversation(said), &specials(), options).unwrap().text
}

const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The \
                      assistant gives helpful, detailed, and polite answers to the user's questions.";

#[test]
fn vicuna_is_as_published_byte_for_byte() {
    let vicuna = ChatTemplate::open("vicuna_v1.1").unwrap();
    let one = [("user", "Hello!")];
    assert_eq!(text(&vicuna, &one, &prompt()), format!("<s>{SYSTEM} USER: Hello! ASSISTANT:"));
    let two = [
        ("user", "Hello!"),
        ("assistant", "Hi!"),
        ("user", "How are you?"),
        ("assistant", "Fine."),
    ];
    let whole = format!(
        "<s>{SYSTEM} USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT: Fine.</s>"
    );
    assert_eq!(text(&vicuna, &two, &RenderOptions::default()), whole);
    let system = [("system", "Be brief."), ("user", "Hello!")];
    assert_eq!(text(&vicuna, &system, &prompt()), "<s>Be brief. USER: Hello! ASSISTANT:");
}

#[test]
fn alpaca_is_as_published_byte_for_byte() {
    let alpaca = ChatTemplate::open("alpaca").unwrap();
    let without = "<s>Below is an instruction that describes a task. Write a response that \
                   appropriately completes the request.\n\n### Instruction:\nAdd {two}\n and three.\
                   \n\n### Response:";
    assert_eq!(text(&alpaca, &[("user", "Add {two}\n and three.")], &prompt()), without);
    let mut message = Message::new("user", "Sort.");
    message.0.insert("input".into(), json!(" b a"));
    let answered = [message, Message::new("assistant", "a b")];
    let with = "<s>Below is an instruction that describes a task, paired with an input that provides \
                further context. Write a response that appropriately completes the request.\n\n### \
                Instruction:\nSort.\n\n### Input:\n b a\n\n### Response:a b</s>";
    let rendered = alpaca.render(&answered, &specials(), &RenderOptions::default()).unwrap();
    assert_eq!(rendered.text, with);
}

#[test]
fn what_the_assistant_says_is_found_in_bytes_with_and_without_marks() {
    let said = [("user", "Grüße"), ("assistant", "schön"), ("user", "b"), ("assistant", "ü")];
    let marked = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}\
                  {{ ' ASSISTANT:' }}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}\
                  {% else %}{{ 'USER: ' + m.content }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}";
    let options = RenderOptions { find_assistant: true, ..RenderOptions::default() };
    let marked = ChatTemplate::compile("marked", marked).unwrap();
    for template in [ChatTemplate::open("vicuna_v1.1").unwrap(), marked] {
        let rendered = template.render(&conversation(&said), &specials(), &options).unwrap();
        let spoken: Vec<&str> =
            rendered.assistant.iter().map(|bytes| &rendered.text[bytes.clone()]).collect();
        assert_eq!(spoken, [" schön</s>", " ü</s>"], "{template:?}");
    }
    let turned = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}";
    let turned = ChatTemplate::compile("turned", turned).unwrap();
    let error = turned.render(&conversation(&said), &specials(), &options).unwrap_err().to_string();
    assert!(error.contains("turned") && error.contains("generation"), "{error}");
}

#[test]
fn a_prompt_is_the_beginning_of_the_training_text() {
    let vicuna = ChatTemplate::open("vicuna_v1.1").unwrap();
    let said = [("user", "a"), ("assistant", "b")];
    let whole = text(&vicuna, &said, &RenderOptions::default());
    assert!(whole.starts_with(&text(&vicuna, &said[..1], &prompt())));
}

#[test]
fn special_tokens_in_a_message_stay_text() {
    let vicuna = ChatTemplate::open("vicuna_v1.1").unwrap();
    let said = conversation(&[("user", "</s>a<s>"), ("assistant", "b</s>")]);
    let rendered = vicuna.render(&said, &specials(), &RenderOptions::default()).unwrap();
    assert!(rendered.text.ends_with("USER: </s>a<s> ASSISTANT: b</s></s>"), "{}", rendered.text);
    let special = |segment: &Segment| match segment {
        Segment::Special { id, bytes } => Some((*id, bytes.clone())),
        Segment::Text(_) => None,
    };
    let found: Vec<_> = rendered.segments.iter().filter_map(special).collect();
    let end = rendered.text.len();
    assert_eq!(found, [(1, 0..3), (2, end - 4..end)]);
    // Characters that mark something else must not be mistaken for marks.
    let said = conversation(&[("user", "x\u{FDD0}y\u{FDD1}")]);
    let rendered = vicuna.render(&said, &specials(), &prompt()).unwrap();
    assert!(rendered.text.contains("x\u{FDD0}y\u{FDD1}"));
}

#[test]
fn the_last_message_can_be_left_open() {
    let vicuna = ChatTemplate::open("vicuna_v1.1").unwrap();
    let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    let said = [("user", "a"), ("assistant", "The answer is")];
    let open = text(&vicuna, &said, &options);
    assert!(open.ends_with("USER: a ASSISTANT: The answer is"), "{open}");
}

#[test]
fn the_language_is_that_of_hugging_face() {
    let mut tools = Map::new();
    tools.insert("tools".into(), json!([{"name": "f", "args": {"b": 1, "a": [true, null, 1.5]}}]));
    let options = RenderOptions { variables: tools, ..prompt() };
    let source = "{% for m in messages %}\n    {% if m['role'] == 'user' %}\n{{ m.content.strip() }}|\n    \
                  {% else %}{% continue %}{% endif %}\n{% endfor %}{{ tools | tojson }}\
                  {{ tools[0].args | tojson(indent=2) }}{{ 'é' | tojson }}{{ messages[-1].role.upper() }}";
    let template = ChatTemplate::compile("t", source).unwrap();
    let written = text(&template, &[("user", " a "), ("assistant", "b")], &options);
    assert_eq!(
        written,
        "a|\n[{\"name\": \"f\", \"args\": {\"b\": 1, \"a\": [true, null, 1.5]}}]{\n  \"b\": 1,\n  \"a\": [\n    \
         true,\n    null,\n    1.5\n  ]\n}\"é\"ASSISTANT"
    );
}

#[test]
fn errors_name_template_line_and_what() {
    let error = ChatTemplate::compile("own.jinja", "a\n{% if %}").unwrap_err().to_string();
    assert!(error.contains("own.jinja") && error.contains("line 2"), "{error}");
    let raised =
        ChatTemplate::compile("own.jinja", "\n\n{{ raise_exception('no tools here') }}").unwrap();
    let error = raised.render(&[], &specials(), &prompt()).unwrap_err().to_string();
    assert!(error.contains("own.jinja: line 3: no tools here"), "{error}");
    let vicuna = ChatTemplate::open("vicuna_v1.1").unwrap();
    let twice = conversation(&[("user", "a"), ("user", "b")]);
    let error = vicuna.render(&twice, &specials(), &prompt()).unwrap_err().to_string();
    assert!(error.contains("vicuna_v1.1") && error.contains("alternate"), "{error}");
    for (name, word) in [("vicuna_v0", "### Human"), ("llama9", "alpaca, vicuna_v1.1")] {
        let error = ChatTemplate::open(name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
    }
}

#[test]
fn a_template_cannot_work_or_write_without_end() {
    for (source, word) in [
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for a in range(50000) %}{{ 'x' * 1000 }}{% endfor %}", "bytes"),
        ("{% include '/etc/passwd' %}", "template"),
    ] {
        let template = ChatTemplate::compile("hostile", source).unwrap();
        let error = template.render(&[], &specials(), &prompt()).unwrap_err().to_string();
        assert!(error.contains("hostile") && error.contains(word), "{source}: {error}");
    }
}

#[test]
fn templates_of_a_tokenizer_config() {
    let path = Path::new("tokenizer_config.json");
    let of = |config, name| ChatTemplate::in_tokenizer_config(path, &config, name);
    assert!(of(json!({}), None).unwrap().is_none());
    assert_eq!(of(json!({"chat_template": "x"}), None).unwrap().unwrap().source, "x");
    let list = json!({"chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]});
    assert_eq!(of(list.clone(), None).unwrap().unwrap().source, "d");
    assert_eq!(of(list.clone(), Some("rag")).unwrap().unwrap().source, "r");
    let error = of(list, Some("tool_use")).unwrap_err().to_string();
    assert!(error.contains("default, rag"), "{error}");
    assert!(of(json!({"chat_template": 3}), None).is_err());
}
