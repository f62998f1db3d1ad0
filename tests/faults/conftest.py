from tests.e2e.conftest import trained_template

__all__ = ["trained_template"]
