"""The errors: what comes from outside cannot control the terminal."""

from mnist.core.errors import InputError, ServiceUnavailableError, printable


def test_a_text_from_outside_is_one_line_without_control_characters() -> None:
    assert printable("a\x1b[2Jb\r\n\u202eé\udce9") == "a?[2Jb???é?"


def test_a_message_has_none_but_its_own_line_ends() -> None:
    error = InputError("a\x1b[2J", found="b\r", expected="one\n  two")
    assert str(error) == "a?[2J: found b?, expected one\n  two"
    assert str(ServiceUnavailableError("a", "b\n\x1b")) == "a does not answer (b??)"
