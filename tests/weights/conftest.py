from __future__ import annotations

import pytest
import torch
from transformers import BertForPreTraining

from tests.weights.first_weights import bert_config, scrambled, swin
from tests.weights.shapes import small_config
from xvlm_core.models.xvlm import XVLM


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = XVLM(small_config())
    with torch.no_grad():  # zeros and ones would hide a swap
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


@pytest.fixture
def imagenet():
    model = swin()
    model.load_state_dict(scrambled(model.state_dict()))
    return model


@pytest.fixture
def bert():
    """With pooler, language head and next-sentence head, as bert-base-uncased is."""
    model = BertForPreTraining(bert_config()).eval()
    model.load_state_dict(scrambled(model.state_dict()))
    model.tie_weights()
    return model
