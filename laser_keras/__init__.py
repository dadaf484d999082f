"""Keras 3 layers and models for ranking with long user histories, on any Keras backend."""

from laser_keras.encoders.combined_encoder import CombinedEncoder
from laser_keras.encoders.din_encoder import DINEncoder
from laser_keras.encoders.hstu_encoder import HSTUEncoder
from laser_keras.encoders.laser_encoder import LaserEncoder
from laser_keras.encoders.longer_encoder import LONGEREncoder
from laser_keras.encoders.pooling_encoder import PoolingEncoder
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.encoders.sim_encoder import SIMEncoder
from laser_keras.encoders.stca_encoder import STCAEncoder
from laser_keras.encoders.transformer_encoder import TransformerEncoder
from laser_keras.encoders.twin_encoder import TWINEncoder
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.activation_unit_attention import ActivationUnitAttention
from laser_keras.layers.dice import Dice
from laser_keras.layers.feature_embedding import FeatureEmbedding
from laser_keras.layers.feature_mlp import FeatureMLP
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.global_stacked_target_attention import GlobalStackedTargetAttention
from laser_keras.layers.hard_search import HardSearch
from laser_keras.layers.multi_resolution_fusion import MultiResolutionFusion
from laser_keras.layers.per_token_feed_forward import PerTokenFeedForward
from laser_keras.layers.per_token_mixture_of_experts import PerTokenMixtureOfExperts
from laser_keras.layers.random_suffix import RandomSuffix
from laser_keras.layers.rank_mixer import RankMixer
from laser_keras.layers.recency_embedding import RecencyEmbedding
from laser_keras.layers.segmented_target_attention import SegmentedTargetAttention
from laser_keras.layers.sequence_tokenizer import SequenceTokenizer
from laser_keras.layers.soft_search import SoftSearch
from laser_keras.layers.swiglu_feed_forward import SwiGLUFeedForward
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.losses.listwise_softmax_loss import ListwiseSoftmaxLoss
from laser_keras.losses.pairwise_logistic_loss import PairwiseLogisticLoss
from laser_keras.metrics.group_auc import GroupAUC
from laser_keras.models.comparison import SYSTEMS, comparison_ranker
from laser_keras.models.laser_ranker import LaserRanker
from laser_keras.models.sequence_ranker import SequenceRanker
from laser_keras.sequence import reverse_valid, segment_mask

__all__ = [
    "SYSTEMS",
    "ActivationUnitAttention",
    "CombinedEncoder",
    "DINEncoder",
    "Dice",
    "FeatureEmbedding",
    "FeatureMLP",
    "FeedForward",
    "GlobalStackedTargetAttention",
    "GroupAUC",
    "HSTUEncoder",
    "HardSearch",
    "LONGEREncoder",
    "LaserEncoder",
    "LaserRanker",
    "ListwiseSoftmaxLoss",
    "MultiResolutionFusion",
    "PairwiseLogisticLoss",
    "PerTokenFeedForward",
    "PerTokenMixtureOfExperts",
    "PoolingEncoder",
    "RandomSuffix",
    "RankMixer",
    "RecencyEmbedding",
    "SIMEncoder",
    "STCAEncoder",
    "SegmentedTargetAttention",
    "SequenceEncoder",
    "SequenceRanker",
    "SequenceTokenizer",
    "SoftSearch",
    "SwiGLUFeedForward",
    "TWINEncoder",
    "TargetAttention",
    "TransformerEncoder",
    "WeighingEncoder",
    "comparison_ranker",
    "reverse_valid",
    "segment_mask",
]
