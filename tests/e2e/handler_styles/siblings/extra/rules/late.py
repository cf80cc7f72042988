from . import plural


def shout(text):
    assert plural("x") == "xs"
    return text.upper() + "!"
