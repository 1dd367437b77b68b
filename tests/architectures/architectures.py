"""Architectures of timm, torchvision and transformers with random weights: what makes each model, its inputs, and which dims its export leaves open.

Text models are small (two layers of 64), pictures have the size that the architecture is made for or a small one. ARCHITECTURES maps a name to a function that gives
(module, inputs, names of inputs, dims left open by input, or None).
"""

import timm
import torch
import torchvision
import transformers

ARCHITECTURES = {}

TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convit_tiny convmixer_768_32 convnextv2_atto crossvit_tiny_240
cspdarknet53 cspresnet50 darknet53 davit_tiny densenet121 dla34 dm_nfnet_f0 eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnetv2_rw_t efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 focalnet_tiny_srf gcresnet33ts ghostnet_050
ghostnetv2_100 gmixer_12_224 gmlp_ti16_224 halonet26t hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3 lambda_resnet26t lcnet_050 levit_128s
mambaout_femto maxvit_rmlp_pico_rw_256 mixer_s32_224 mnasnet_small mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv5_300m mobileone_s0 mobilevit_xxs
mobilevitv2_050 nest_tiny nextvit_small poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224
resnest14d resnet18d resnext26ts samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_cr_tiny_ns_224 test_vit tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_small_patch14_reg4_dinov2
vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 xception41 xcit_nano_12_p16_224
""".split()


def add(name, make):
    ARCHITECTURES[name] = make


def timm_model(name):
    model = timm.create_model(name, pretrained=False).eval()
    return model, (torch.rand(2, *model.default_cfg.get("input_size", (3, 224, 224))),), ["x"], [{0: "batch"}]


for name in TIMM:
    add(f"timm/{name}", lambda name=name: timm_model(name))


def pictures(name, make, dims, open_dims=None):
    add(f"torchvision/{name}", lambda: (make().eval(), (torch.rand(*dims),), ["x"], open_dims))


models, batch = torchvision.models, [{0: "batch"}]
bare = {"weights": None, "weights_backbone": None}
pictures("alexnet", models.alexnet, (2, 3, 224, 224), batch)
pictures("fcn_resnet50", lambda: models.segmentation.fcn_resnet50(**bare), (1, 3, 128, 128))
pictures("googlenet", lambda: models.googlenet(weights=None, init_weights=False, aux_logits=False), (2, 3, 224, 224), batch)
pictures("lraspp", lambda: models.segmentation.lraspp_mobilenet_v3_large(**bare), (2, 3, 128, 128), batch)
pictures("maxvit_t", models.maxvit_t, (1, 3, 224, 224))
pictures("mvit_v2_s", models.video.mvit_v2_s, (1, 3, 16, 224, 224))
pictures("r3d_18", models.video.r3d_18, (1, 3, 8, 64, 64))
pictures("s3d", models.video.s3d, (1, 3, 16, 224, 224))
pictures("shufflenet_v2", models.shufflenet_v2_x0_5, (2, 3, 224, 224), batch)
pictures("squeezenet", models.squeezenet1_1, (2, 3, 224, 224), batch)
pictures("swin3d_t", models.video.swin3d_t, (1, 3, 8, 64, 64))
add("torchvision/raft_small", lambda: (models.optical_flow.raft_small().eval(), (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)), ["a", "b"], None))
for name, size in [("fasterrcnn_mobilenet_v3_large_320_fpn", 320), ("fcos_resnet50_fpn", 256), ("keypointrcnn_resnet50_fpn", 256), ("retinanet_resnet50_fpn", 256), ("ssd300_vgg16", 300)]:
    # Detectors are exported by scripting alone.
    add(f"torchvision/{name}", lambda name=name, size=size: (getattr(models.detection, name)(**bare).eval(), ([torch.rand(3, size, size)],), ["x"], "script"))


class Plain(torch.nn.Module):
    """A model of transformers as a function of tensors that gives some of its results."""

    def __init__(self, model, inputs, results):
        super().__init__()
        self.model, self.inputs, self.results = model, inputs, results

    def forward(self, *given):
        out = self.model(**dict(zip(self.inputs, given)), return_dict=True)
        if torch.is_tensor(out):
            return out
        found = tuple(getattr(out, name) for name in self.results)
        return found if len(found) > 1 else found[0]


def hugging(name, kind, cls, inputs, make, results, open_dims=None, **settings):
    def build():
        config = getattr(transformers, kind + "Config")(**settings)
        config._experts_implementation = "batched_mm"  # experts in one product, which has a form in ONNX
        model = getattr(transformers, cls)(config).eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return Plain(model, inputs, results).eval(), make(), inputs, open_dims

    add(f"transformers/{name}", build)


TEXT, LAST, LOGITS = ["input_ids", "attention_mask"], ["last_hidden_state"], ["logits"]
OPEN = [{0: "batch", 1: "sequence"}] * 2
LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TINY = {"vocab_size": 100, **LAYERS}


def text():
    return torch.randint(3, 90, (2, 16)), torch.ones(2, 16, dtype=torch.int64)


ENCODERS = {
    "albert": ("Albert", {"embedding_size": 32}), "bert": ("Bert", {}), "bigbird": ("BigBird", {}), "camembert": ("Camembert", {}), "convbert": ("ConvBert", {}),
    "deberta": ("Deberta", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}),
    "deberta_v2": ("DebertaV2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}),
    "electra": ("Electra", {}), "ernie": ("Ernie", {}), "ibert": ("IBert", {}), "layoutlm": ("LayoutLM", {}), "longformer": ("Longformer", {"attention_window": 8}),
    "esm": ("Esm", {"pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary", "emb_layer_norm_before": False}),
    "megatron_bert": ("MegatronBert", {}), "mobilebert": ("MobileBert", {"embedding_size": 64, "intra_bottleneck_size": 64, "true_hidden_size": 64}),
    "modernbert": ("ModernBert", {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}), "mpnet": ("MPNet", {}),
    "nystromformer": ("Nystromformer", {}), "rembert": ("RemBert", {}), "roberta": ("Roberta", {}), "roformer": ("RoFormer", {}), "splinter": ("Splinter", {}),
    "squeezebert": ("SqueezeBert", {"embedding_size": 64}), "xlm_roberta": ("XLMRoberta", {}), "xlm_roberta_xl": ("XLMRobertaXL", {}),
}
for name, (kind, more) in ENCODERS.items():
    hugging(name, kind, kind + "Model", TEXT, text, LAST, OPEN, **{**TINY, **more})
hugging("distilbert", "DistilBert", "DistilBertModel", TEXT, text, LAST, OPEN, vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
hugging("fnet", "FNet", "FNetModel", TEXT[:1], lambda: text()[:1], LAST, None, vocab_size=100, hidden_size=64, num_hidden_layers=2, intermediate_size=128)
hugging("funnel", "Funnel", "FunnelModel", TEXT, text, LAST, None, vocab_size=100, d_model=64, n_head=4, d_head=16, d_inner=128, block_sizes=[1, 1])
hugging("xlnet", "XLNet", "XLNetModel", TEXT, text, LAST, None, vocab_size=100, d_model=64, n_layer=2, n_head=4, d_inner=128)

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
DECODERS = {
    "cohere": ("Cohere", {}), "ernie4_5": ("Ernie4_5", {}), "exaone4": ("Exaone4", {}), "gemma": ("Gemma", {"head_dim": 16}), "gemma2": ("Gemma2", {"head_dim": 16}),
    "deepseek_v3": ("DeepseekV3", {**EXPERTS, **LATENT, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "first_k_dense_replace": 1}),
    "glm": ("Glm", {"head_dim": 16}), "granite": ("Granite", {}), "helium": ("Helium", {"head_dim": 16}), "lfm2": ("Lfm2", {}), "llama": ("Llama", {}), "mistral": ("Mistral", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}), "nemotron": ("Nemotron", {}), "olmo2": ("Olmo2", {}), "phi": ("Phi", {}), "phi3": ("Phi3", {}), "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}), "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "head_dim": 16}), "recurrent_gemma": ("RecurrentGemma", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {}), "stablelm": ("StableLm", {}), "starcoder2": ("Starcoder2", {}),
}
for name, (kind, more) in DECODERS.items():
    every = {**TINY, "num_key_value_heads": 2, "pad_token_id": 0, "max_position_embeddings": 64, **more}
    hugging(name, kind, kind + "ForCausalLM", TEXT, text, LOGITS, OPEN, **every)
hugging("gemma3", "Gemma3Text", "Gemma3ForCausalLM", TEXT, text, LOGITS, OPEN, **TINY, num_key_value_heads=2, head_dim=16, pad_token_id=0, max_position_embeddings=64)
hugging("gpt_neox", "GPTNeoX", "GPTNeoXForCausalLM", TEXT, text, LOGITS, OPEN, **TINY, pad_token_id=0, max_position_embeddings=64)
hugging("falcon", "Falcon", "FalconForCausalLM", TEXT, text, LOGITS, OPEN, vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
hugging("mpt", "Mpt", "MptForCausalLM", TEXT, text, LOGITS, OPEN, vocab_size=100, d_model=64, n_layers=2, n_heads=4, max_seq_len=64)
for name, kind, more in [("gpt2", "GPT2", {}), ("gptj", "GPTJ", {"rotary_dim": 8}), ("codegen", "CodeGen", {"rotary_dim": 8})]:
    hugging(name, kind, kind + ("LMHeadModel" if name == "gpt2" else "ForCausalLM"), TEXT, text, LOGITS, OPEN, vocab_size=100, n_embd=64, n_layer=2, n_head=4, **more)
hugging("gpt_neo", "GPTNeo", "GPTNeoForCausalLM", TEXT, text, LOGITS, OPEN, vocab_size=100, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
hugging("opt", "OPT", "OPTForCausalLM", TEXT, text, LOGITS, OPEN, vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, word_embed_proj_dim=64)
hugging("bloom", "Bloom", "BloomForCausalLM", TEXT, text, LOGITS, OPEN, vocab_size=100, hidden_size=64, n_layer=2, n_head=4)
STATES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2}
hugging("mamba", "Mamba", "MambaForCausalLM", TEXT[:1], lambda: text()[:1], LOGITS, None, **STATES, state_size=8)
hugging("mamba2", "Mamba2", "Mamba2ForCausalLM", TEXT[:1], lambda: text()[:1], LOGITS, None, **STATES, state_size=8, num_heads=8, head_dim=16, n_groups=1, chunk_size=8)
hugging("rwkv", "Rwkv", "RwkvForCausalLM", TEXT[:1], lambda: text()[:1], LOGITS, None, **STATES)

PAIRS, PAIRS_OPEN = [*TEXT, "decoder_input_ids"], [*OPEN, {0: "batch", 1: "target"}]


def pairs():
    return *text(), torch.randint(3, 90, (2, 8))


for name, kind in [("t5", "T5"), ("mt5", "MT5")]:
    hugging(name, kind, kind + "ForConditionalGeneration", PAIRS, pairs, LOGITS, PAIRS_OPEN, vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
ENDS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
SEQ2SEQ = {"vocab_size": 100, "d_model": 64, **ENDS, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2}
for name, kind in [("bart", "Bart"), ("blenderbot", "Blenderbot"), ("m2m100", "M2M100"), ("marian", "Marian"), ("mbart", "MBart"), ("pegasus", "Pegasus")]:
    cls = "MarianMTModel" if name == "marian" else kind + "ForConditionalGeneration"
    hugging(name, kind, cls, PAIRS, pairs, LOGITS, PAIRS_OPEN, **SEQ2SEQ)
hugging("led", "LED", "LEDForConditionalGeneration", PAIRS, pairs, LOGITS, None, **SEQ2SEQ, attention_window=8)


def image(size, count=2):
    return lambda: (torch.rand(count, 3, size, size),)


PIXELS, BOXES = ["pixel_values"], ["logits", "pred_boxes"]
PATCHES = {**LAYERS, "image_size": 64, "patch_size": 16}
for name, kind, cls in [
    ("beit", "Beit", "BeitModel"), ("clip_vision", "CLIPVision", "CLIPVisionModel"), ("data2vec_vision", "Data2VecVision", "Data2VecVisionModel"), ("deit", "DeiT", "DeiTModel"),
    ("dinov3", "DINOv3ViT", "DINOv3ViTModel"), ("ijepa", "IJepa", "IJepaModel"), ("siglip_vision", "SiglipVision", "SiglipVisionModel"), ("vit", "ViT", "ViTModel"),
]:
    hugging(name, kind, cls, PIXELS, image(64), LAST, batch, **PATCHES)
hugging("dinov2", "Dinov2", "Dinov2Model", PIXELS, image(56), LAST, batch, **{**PATCHES, "image_size": 56, "patch_size": 14})
hugging("yolos", "Yolos", "YolosForObjectDetection", PIXELS, image(64), BOXES, batch, **{**PATCHES, "image_size": [64, 64]}, num_detection_tokens=5)
hugging("segformer", "Segformer", "SegformerForSemanticSegmentation", PIXELS, image(128), LOGITS, batch)
hugging("segformer_open", "Segformer", "SegformerForSemanticSegmentation", PIXELS, image(128), LOGITS, [{0: "batch", 2: "height", 3: "width"}])
hugging("upernet", "UperNet", "UperNetForSemanticSegmentation", PIXELS, image(128), LOGITS)
hugging("dpt", "DPT", "DPTForDepthEstimation", PIXELS, image(64), ["predicted_depth"], batch, **PATCHES, backbone_out_indices=[0, 1], neck_hidden_sizes=[16, 16], reassemble_factors=[1, 2], is_hybrid=False)
hugging("depth_anything", "DepthAnything", "DepthAnythingForDepthEstimation", PIXELS, image(56), ["predicted_depth"])
hugging("glpn", "GLPN", "GLPNForDepthEstimation", PIXELS, image(128), ["predicted_depth"], batch)
hugging("swin2sr", "Swin2SR", "Swin2SRForImageSuperResolution", PIXELS, image(64, 1), ["reconstruction"], None, embed_dim=32, depths=[2, 2], num_heads=[2, 2], image_size=64)
hugging("sam", "Sam", "SamModel", [*PIXELS, "input_points"], lambda: (torch.rand(1, 3, 1024, 1024), torch.rand(1, 1, 2, 2) * 1000), ["iou_scores", "pred_masks"])
for name, kind in [("d_fine", "DFine"), ("rt_detr", "RTDetr"), ("rt_detr_v2", "RTDetrV2")]:
    hugging(name, kind, kind + "ForObjectDetection", PIXELS, image(128, 1), BOXES)
BACKBONE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
for name, kind, more in [("conditional_detr", "ConditionalDetr", {}), ("deformable_detr", "DeformableDetr", {"disable_custom_kernels": True}), ("detr", "Detr", {"backbone_config": None})]:
    hugging(name, kind, kind + "ForObjectDetection", PIXELS, image(128, 1), BOXES, None, **BACKBONE, **more)
MASKS = ["class_queries_logits", "masks_queries_logits"]
hugging("maskformer", "MaskFormer", "MaskFormerForInstanceSegmentation", PIXELS, image(128, 1), MASKS)
hugging("mask2former", "Mask2Former", "Mask2FormerForUniversalSegmentation", PIXELS, image(128, 1), MASKS)
both = lambda size, count: lambda: (torch.randint(3, 90, (2, 16)), torch.rand(count, 3, size, size), torch.ones(2, 16, dtype=torch.int64))  # noqa: E731
hugging("owlvit", "OwlViT", "OwlViTForObjectDetection", ["input_ids", *PIXELS, "attention_mask"], both(768, 1), BOXES)
hugging("clip", "CLIP", "CLIPModel", ["input_ids", *PIXELS, "attention_mask"], both(224, 1), ["logits_per_image"])
hugging("bit", "Bit", "BitModel", PIXELS, image(96), LAST, batch)
hugging("focalnet", "FocalNet", "FocalNetModel", PIXELS, image(224, 1), LAST)
hugging("levit", "Levit", "LevitModel", PIXELS, image(224, 1), LAST)
hugging("mobilenet_v2", "MobileNetV2", "MobileNetV2Model", PIXELS, image(96), LAST, batch)
hugging("superpoint", "SuperPoint", "SuperPointForKeypointDetection", PIXELS, image(128, 1), ["keypoints", "scores"])
hugging("vitpose", "VitPose", "VitPoseForPoseEstimation", PIXELS, lambda: (torch.rand(1, 3, 256, 192),), ["heatmaps"])

WHISPER = {**SEQ2SEQ, "max_source_positions": 100, "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1}
heard = lambda: (torch.rand(1, 80, 200), torch.randint(3, 90, (1, 8)))  # noqa: E731
hugging("whisper", "Whisper", "WhisperForConditionalGeneration", ["input_features", "decoder_input_ids"], heard, LOGITS, [None, {1: "target"}], **WHISPER)
for name, kind in [
    ("data2vec_audio", "Data2VecAudio"), ("hubert", "Hubert"), ("sew", "SEW"), ("unispeech", "UniSpeech"), ("wav2vec2", "Wav2Vec2"), ("wav2vec2_conformer", "Wav2Vec2Conformer"), ("wavlm", "WavLM"),
]:
    hugging(name, kind, kind + "Model", ["input_values"], lambda: (torch.randn(1, 4000),), LAST, None, **LAYERS)
hugging("ast", "AST", "ASTModel", ["input_values"], lambda: (torch.rand(2, 128, 128),), LAST, batch, **LAYERS, max_length=128)
hugging("hifigan", "SpeechT5HifiGan", "SpeechT5HifiGan", ["spectrogram"], lambda: (torch.rand(1, 20, 80),), [])
hugging("patchtst", "PatchTST", "PatchTSTModel", ["past_values"], lambda: (torch.rand(2, 32, 1),), LAST)
series = lambda: (torch.rand(1, 64), torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64))  # noqa: E731
hugging("timesfm", "TimesFm", "TimesFmModel", ["past_values", "past_values_padding", "freq"], series, LAST)
# Speech without randomness in its lengths, so that runs can be compared.
hugging("vits", "Vits", "VitsModel", ["input_ids"], lambda: (torch.randint(1, 30, (1, 12)),), ["waveform"], None, noise_scale=0.0, noise_scale_duration=0.0)
