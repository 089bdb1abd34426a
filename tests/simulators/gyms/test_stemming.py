"""Stemming: different forms of the same words give the same set of stems."""

from simulators.gyms.stemming import MAX_TEXT_CHARS, STOP_WORDS, stem, stems_of, words_of


def test_forms_of_one_word_have_one_stem():
    for forms in (
        ("size", "sizes", "sized"),
        ("transport", "transportation"),
        ("ate", "eating", "eats"),
        ("died", "death"),
    ):
        assert len({stem(form) for form in forms}) == 1, forms


def test_short_words_and_numbers_stay_whole():
    assert stems_of("3-5 days in an E-bus") == {"3", "5", "day", "e", "bus"}


def test_stop_words_tell_nothing_unless_there_is_nothing_else():
    assert stems_of("What is the price of it?") == stems_of("price")
    assert stems_of("Any kind") == {"any", "kind"}
    assert stems_of("?!") == frozenset()
    assert not STOP_WORDS & {"no", "not", "more", "less", "than"}


def test_a_long_text_is_read_only_so_far():
    assert len(words_of("a " * MAX_TEXT_CHARS)) == MAX_TEXT_CHARS // 2
