//! Files that mean harm, made as they are needed: what a reader must refuse, or take, without much memory or time.

/// Chat templates by name. None may crash, hang or take much memory; most must be refused when parsed or rendered.
pub fn templates() -> Vec<(&'static str, String)> {
    let chain = |start: &str, link: &str, count: usize, end: &str| {
        format!("{{{{ {start}{}{end} }}}}", link.repeat(count))
    };
    let again = |count: usize, step: &str, last: &str| {
        format!(
            "{{% set ns = namespace(s=[], t='', d={{}}) %}}{{% for i in range({count}) %}}{step}{{% endfor %}}{last}"
        )
    };
    let doubled = "{% set ns.s = [ns.s, ns.s] %}";
    let nested = "{% set ns.s = [ns.s] %}";
    let nested_map = "{% set ns.d = {'a': ns.d} %}";
    let text = "{% set ns.t = ns.t ~ ns.t ~ 'ab' %}";
    let big = "{% set ns.t = 'x' * 100000 %}";
    vec![
        ("not_chain", chain("", "not ", 20_000, "1")),
        ("minus_chain", chain("", "-", 80_000, "1")),
        ("filter_chain", chain("1", "|abs", 20_000, "")),
        ("attribute_chain", chain("a", ".a", 40_000, "")),
        ("subscript_chain", chain("a", "[0]", 27_000, "")),
        ("call_chain", chain("a", "()", 40_000, "")),
        ("sum_chain", chain("1", "+1", 40_000, "")),
        ("text_chain", chain("'a'", "~'a'", 20_000, "")),
        ("and_chain", chain("1", " and 1", 14_000, "")),
        ("test_chain", chain("1", " is defined", 8_000, "")),
        ("if_chain", chain("1", " if 1 else 1", 6_000, "")),
        ("power_chain", chain("1", "**1", 27_000, "")),
        ("parentheses", chain("", "(", 40_000, "1")),
        ("brackets", chain("", "[", 40_000, "1")),
        ("braces", chain("", "{1:", 27_000, "1")),
        ("elif_chain", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(7_000))),
        ("nested_ifs", "{% if 1 %}".repeat(8_000)),
        ("nested_fors", "{% for a in b %}".repeat(5_000)),
        ("nested_macros", "{% macro a() %}".repeat(5_000)),
        ("own_namespace", "{% set ns = namespace() %}{% set ns.s = ns %}{{ ns }}".to_owned()),
        ("own_namespace_in_list", "{% set ns = namespace() %}{% set ns.s = [ns] %}{{ ns.s }}".to_owned()),
        ("own_namespace_compared", "{% set ns = namespace() %}{% set ns.s = ns %}{{ ns == ns.s }}".to_owned()),
        (
            "chained_namespaces",
            "{% set r = namespace() %}{% set r.cur = namespace() %}{% for i in range(90000) %}{% set c = r.cur %}\
             {% set n = namespace() %}{% set c.next = n %}{% set r.cur = n %}{% endfor %}"
                .to_owned(),
        ),
        (
            "kept_loops",
            "{% set ns = namespace(s=0) %}{% for i in range(90000) %}{% for y in [ns.s, 1] %}{% set ns.s = [loop] %}{% endfor %}{% endfor %}"
                .to_owned(),
        ),
        (
            "kept_macros",
            "{% set ns = namespace(s=0) %}{% for i in range(90000) %}{% set p = ns.s %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.s = [m] %}{% endfor %}"
                .to_owned(),
        ),
        ("deep_list_dropped", again(90_000, nested, "")),
        ("deep_list_printed", again(90_000, nested, "{{ ns.s }}")),
        ("deep_list_json", again(90_000, nested, "{{ ns.s | tojson }}")),
        ("deep_list_compared", again(90_000, nested, "{{ ns.s == [ns.s] }}")),
        ("deep_map_printed", again(90_000, nested_map, "{{ ns.d }}")),
        ("deep_map_compared", again(90_000, nested_map, "{{ ns.d == {'a': ns.d} }}")),
        ("deep_tuple", again(90_000, "{% set ns.s = (ns.s, 1) %}", "{{ ns.s }}")),
        ("deep_slice", again(90_000, "{% set ns.s = ns.s[0:] %}", "{{ ns.s }}")),
        ("deep_batches", again(90_000, "{% set ns.s = ns.s | batch(1) %}", "{{ ns.s }}")),
        ("deep_lists", again(90_000, "{% set ns.s = [1] | map('list') %}", "{{ ns.s }}")),
        ("deep_repeats", again(90_000, "{% set ns.s = ns.s * 1 %}", "{{ ns.s }}")),
        ("doubled_list_printed", again(60, doubled, "{{ ns.s }}")),
        ("doubled_list_as_text", again(60, doubled, "{{ ns.s | string | length }}")),
        ("doubled_list_json", again(60, doubled, "{{ ns.s | tojson | length }}")),
        ("doubled_list_compared", again(60, doubled, "{{ ns.s == [ns.s[0], ns.s[1]] }}")),
        ("doubled_list_searched", again(60, doubled, "{{ 'x' in [ns.s] }}{{ [ns.s[0], 1] in [ns.s] }}")),
        ("doubled_list_as_key", again(60, doubled, "{{ {ns.s: 1} }}")),
        ("doubled_list_joined", again(60, doubled, "{{ [ns.s, ns.s] | join(',') }}")),
        ("doubled_list_sorted", again(60, doubled, "{{ [ns.s, ns.s] | sort }}")),
        ("doubled_list_unique", again(60, doubled, "{{ [ns.s, [ns.s]] | unique }}")),
        ("doubled_list_in_text", again(60, doubled, "{{ 'x' ~ ns.s }}")),
        ("doubled_map", again(60, "{% set ns.d = {'a': ns.d, 'b': ns.d} %}", "{{ ns.d }}")),
        ("added_list", again(60, "{% set ns.s = ns.s + ns.s + [1] %}", "{{ ns.s ~ '' }}")),
        ("repeated_list", "{% set l = [0] * 100000000 %}{{ l }}".to_owned()),
        ("repeated_lists", "{% set l = [[0] * 10000] * 10000 %}{{ l == l }}{{ l | sort }}".to_owned()),
        ("doubled_text", again(60, text, "{{ ns.t }}")),
        ("doubled_block", again(60, "{% set x %}{{ ns.t }}{{ ns.t }}ab{% endset %}{% set ns.t = x %}", "")),
        ("wide_format", "{{ '%1000000000d' | format(1) }}".to_owned()),
        ("wide_formats", "{{ ('%900000d' * 1000) | format(*([1] * 1000)) }}".to_owned()),
        ("wide_indent", "{{ ('a\n' * 1000) | indent(1000000000) }}".to_owned()),
        ("wide_center", "{{ 'a'.center(1000000000) }}".to_owned()),
        ("wide_method", "{{ '{:1000000000}'.format(1) }}".to_owned()),
        ("wide_methods", "{{ ('{:9000000}' * 1000).format(1) }}".to_owned()),
        ("repeated_fields", again(1, big, "{{ ('{0}' * 100000).format(ns.t) }}")),
        ("wide_json", "{{ ([[1]] * 1000) | tojson(indent=1000000000) }}".to_owned()),
        (
            "wide_separators",
            again(1, big, "{{ range(100000) | list | tojson(separators=[ns.t, ns.t]) | length }}"),
        ),
        ("big_join", again(1, big, "{{ range(100000) | join(ns.t) | length }}{{ ns.t.join(range(100000) | map('string') | list) }}")),
        ("big_replace", again(1, big, "{{ ns.t | replace('x', ns.t) | length }}{{ ns.t.replace('x', ns.t) }}")),
        ("big_escape", "{{ ('&' * 40000000) | escape | length }}".to_owned()),
        ("big_split", "{{ ('a ' * 20000000).split() | length }}".to_owned()),
        ("big_list_of_text", "{{ ('a' * 20000000) | list | length }}".to_owned()),
        ("big_batch", "{{ [1] | batch(1000000000, 'x') | list | length }}{{ [1] | slice(1000000000) }}".to_owned()),
        ("big_zip", "{{ range(100000) | zip(range(100000)) | list | tojson }}".to_owned()),
        ("big_text_many_times", again(1, big, "{% set l = [ns.t] * 100000 %}{{ l == l }}{{ l | tojson }}{{ l }}")),
        (
            "big_texts_compared",
            again(1, big, "{% set a = [ns.t ~ 'a'] * 300 %}{% set b = [ns.t ~ 'a'] * 300 %}{% for i in range(100000) %}{{ a == b }}{% endfor %}"),
        ),
        ("deep_indent", "{{ ([[[[[[[[1]]]]]]]] * 10000) | tojson(indent=1000000000) | length }}".to_owned()),
        ("big_power", "{{ 10 ** 1000000000 }}{{ 2 ** 127 }}".to_owned()),
        ("big_range", "{{ range(1000000000) | list }}".to_owned()),
        ("long_loop", "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}".to_owned()),
        ("silent_loop", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned()),
        (
            "long_compare",
            "{% set a = [range(50000) | list] %}{% set b = [range(50000) | list] %}{% for i in range(100000) %}{{ a == b }}{% endfor %}"
                .to_owned(),
        ),
        (
            "long_search",
            "{% set a = [range(50000) | list] %}{% for i in range(100000) %}{{ [[range(50000) | list], 1] in [a] }}{% endfor %}"
                .to_owned(),
        ),
        ("endless_macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        (
            "nesting_macro",
            "{% macro m(x) %}{{ m([x, x]) }}{{ x }}{% endmacro %}{{ m([1]) }}".to_owned(),
        ),
        ("endless_loop", "{% for x in [1] recursive %}{{ loop([[x, x]]) }}{% endfor %}".to_owned()),
        ("json_bomb", format!("{{{{ ('[' * 100000) | from_json }}}}{}", "{{ ('[' * 100 ~ ']' * 100) | from_json }}".repeat(100))),
        ("control_characters", "{{ raise_exception('\u{1b}]0;title\u{7}\u{1b}[31m') }}".to_owned()),
    ]
}
