"""Keras 3 layers and models for ranking with long user histories, on any Keras backend."""

from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.global_stacked_target_attention import GlobalStackedTargetAttention
from laser_keras.layers.multi_resolution_fusion import MultiResolutionFusion
from laser_keras.layers.rank_mixer import RankMixer
from laser_keras.layers.recency_embedding import RecencyEmbedding
from laser_keras.layers.segmented_target_attention import SegmentedTargetAttention
from laser_keras.layers.sequence_tokenizer import SequenceTokenizer
from laser_keras.models.laser_ranker import LaserRanker
from laser_keras.models.sequence_ranker import SequenceRanker
from laser_keras.sequence import reverse_valid, segment_mask

__all__ = [
    "FeedForward",
    "GlobalStackedTargetAttention",
    "LaserEncoder",
    "LaserRanker",
    "MultiResolutionFusion",
    "RankMixer",
    "RecencyEmbedding",
    "SegmentedTargetAttention",
    "SequenceRanker",
    "SequenceTokenizer",
    "reverse_valid",
    "segment_mask",
]
